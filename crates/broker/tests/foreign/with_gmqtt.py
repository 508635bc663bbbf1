"""gmqtt, an asyncio client with a protocol implementation of its own."""

import asyncio

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from scenario import MANY, PORT, V5, run, same, soon


class Peer:
    """A client with queues of what happened to it; `async with` connects it."""

    def __init__(self, client_id, clean=True, will=None):
        session = {"session_expiry_interval": 60} if V5 else {}
        self.client = gmqtt.Client(client_id, clean_session=clean, will_message=will, **session)
        # A connection that was taken over must not be taken back.
        self.client.set_config({"reconnect_retries": 0})
        self.messages, self.subscribes, self.ended = asyncio.Queue(), asyncio.Queue(), asyncio.Event()
        self.client.on_message = self.on_message
        self.client.on_connect = self.on_connect
        self.client.on_subscribe = lambda client, mid, codes, properties: self.subscribes.put_nowait(codes)
        self.client.on_disconnect = lambda client, packet, exc=None: self.ended.set()
        self.session_present = None

    async def on_message(self, client, topic, payload, qos, properties):
        self.messages.put_nowait((payload.decode(), qos, properties))
        return 0

    def on_connect(self, client, flags, code, properties):
        same(code, 0, "CONNACK")
        self.session_present = bool(flags & 1)

    async def __aenter__(self):
        await soon(self.client.connect("127.0.0.1", PORT, version=MQTTv50 if V5 else MQTTv311))
        return self

    async def __aexit__(self, *_):
        await self.client.disconnect()

    async def subscribe(self, topic, qos):
        self.client.subscribe(topic, qos)
        same(list(await soon(self.subscribes.get())), [qos], "SUBACK")

    async def message(self):
        return await soon(self.messages.get())

    async def payloads(self, count):
        return [(await self.message())[0] for _ in range(count)]


async def connect():
    async with Peer("gmqtt-connect") as peer:
        same(peer.session_present, False, "session present")


async def retained():
    async with Peer("gmqtt-retained") as peer:
        peer.client.publish("gmqtt/retained", "kept", qos=1, retain=True)
        await peer.subscribe("gmqtt/retained", 1)
        payload, qos, properties = await peer.message()
        same((payload, qos, bool(properties["retain"])), ("kept", 1, True), "retained message")
        peer.client.publish("gmqtt/retained", "", qos=1, retain=True)
        same(bool((await peer.message())[2]["retain"]), False, "live copy")


async def will():
    async with Peer("gmqtt-watcher") as watcher:
        await watcher.subscribe("gmqtt/will", 2)
        async with Peer("gmqtt-x", will=gmqtt.Message("gmqtt/will", "not this one", qos=2)):
            pass
        async with Peer("gmqtt-x", will=gmqtt.Message("gmqtt/will", "gone", qos=2)) as old:
            # A client with the same id takes over: to the old one that is a lost connection.
            async with Peer("gmqtt-x"):
                same((await watcher.message())[:2], ("gone", 2), "will")
                await soon(old.ended.wait())


async def qos_2():
    async with Peer("gmqtt-2-subscriber") as subscriber, Peer("gmqtt-2-publisher") as publisher:
        await subscriber.subscribe("gmqtt/2/+", 2)
        sent = [str(number) for number in range(200)]
        for payload in sent:
            publisher.client.publish("gmqtt/2/ä", payload, qos=2)
        same(await subscriber.payloads(len(sent)), sent, "QoS 2")


async def session():
    async with Peer("gmqtt-session", clean=False) as subscriber:
        same(subscriber.session_present, False, "session present at first")
        await subscriber.subscribe("gmqtt/session", 2)
    async with Peer("gmqtt-session-publisher") as publisher:
        for number in range(30):
            publisher.client.publish("gmqtt/session", str(number), qos=1 + number % 2)
        async with Peer("gmqtt-session", clean=False) as subscriber:
            same(subscriber.session_present, True, "session present")
            waited = await subscriber.payloads(30)
        same(waited, [str(number) for number in range(30)], "messages that waited")
        async with Peer("gmqtt-session", clean=True) as subscriber:
            same(subscriber.session_present, False, "session present after a clean start")


async def request_and_response():
    async with Peer("gmqtt-responder") as responder, Peer("gmqtt-requester") as requester:
        await responder.subscribe("gmqtt/ask", 1)
        await requester.subscribe("gmqtt/answer", 1)
        asked = {"response_topic": "gmqtt/answer", "correlation_data": b"id", "user_property": ("k", "v")} if V5 else {}
        requester.client.publish("gmqtt/ask", "?", qos=1, **asked)
        _, _, properties = await responder.message()
        topic = properties["response_topic"][0] if V5 else "gmqtt/answer"
        answered = {"correlation_data": properties["correlation_data"][0]} if V5 else {}
        if V5:
            same(properties["user_property"], [("k", "v")], "user property")
        responder.client.publish(topic, "!", qos=1, **answered)
        payload, _, properties = await requester.message()
        same(payload, "!", "answer")
        same(properties["correlation_data"][0] if V5 else b"id", b"id", "correlation data")


async def many_in_order():
    async with Peer("gmqtt-many-subscriber") as subscriber, Peer("gmqtt-many-publisher") as publisher:
        for qos, count in MANY.items():
            await subscriber.subscribe(f"gmqtt/many/{qos}", qos)
            seen = []
            # It sends all it is given at once: no more than the broker's receive maximum may be open (MQTT 5 4.9).
            for start in range(0, count, 100):
                for number in range(start, start + 100):
                    publisher.client.publish(f"gmqtt/many/{qos}", str(number), qos=qos)
                seen += await subscriber.payloads(100)
            same(seen, [str(number) for number in range(count)], f"{count} messages at QoS {qos}")


run(connect, retained, will, qos_2, session, request_and_response, many_in_order)
