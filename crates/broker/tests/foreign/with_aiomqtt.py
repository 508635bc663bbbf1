"""aiomqtt, paho-mqtt behind asyncio."""

import asyncio

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from scenario import MANY, PORT, V5, run, same, soon


def properties(kind, **values):
    """MQTT 5 properties of a packet; None in MQTT 3.1.1."""
    if not V5:
        return None
    result = Properties(kind)
    for name, value in values.items():
        setattr(result, name, value)
    return result


def peer(client_id, clean=True, will=None):
    """A client to be entered with `async with`."""
    if V5:
        start = {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": clean}
        start["properties"] = properties(PacketTypes.CONNECT, SessionExpiryInterval=60)
    else:
        start = {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": clean}
    return aiomqtt.Client("127.0.0.1", PORT, identifier=client_id, will=will, **start)


async def payloads(client, count):
    async def take():
        seen = []
        async for message in client.messages:
            seen.append(message.payload.decode())
            if len(seen) == count:
                return seen

    return await soon(take())


async def message(client):
    return await soon(client.messages.__anext__())


async def connect():
    async with peer("aiomqtt-connect"):
        pass


async def retained():
    async with peer("aiomqtt-retained") as client:
        await client.publish("aiomqtt/retained", "kept", 1, retain=True)
        await client.subscribe("aiomqtt/retained", 1)
        seen = await message(client)
        same((seen.payload, seen.retain, seen.qos), (b"kept", True, 1), "retained message")
        await client.publish("aiomqtt/retained", "", 1, retain=True)
        same((await message(client)).retain, False, "live copy")


async def will():
    async with peer("aiomqtt-watcher") as watcher:
        await watcher.subscribe("aiomqtt/will", 2)
        async with peer("aiomqtt-x", will=aiomqtt.Will("aiomqtt/will", "not this one", 2)):
            pass
        try:
            async with peer("aiomqtt-x", will=aiomqtt.Will("aiomqtt/will", "gone", 2)) as old:
                # A client with the same id takes over: to the old one that is a lost connection.
                async with peer("aiomqtt-x"):
                    seen = await message(watcher)
                    same((seen.payload, seen.qos), (b"gone", 2), "will")
                    await message(old)
        except aiomqtt.MqttError:
            return
        raise AssertionError("the old connection was not closed")


async def qos_2():
    async with peer("aiomqtt-2-subscriber") as subscriber, peer("aiomqtt-2-publisher") as publisher:
        await subscriber.subscribe("aiomqtt/2/+", 2)
        sent = [str(number) for number in range(200)]
        for payload in sent:
            await publisher.publish("aiomqtt/2/ä", payload, 2)
        same(await payloads(subscriber, len(sent)), sent, "QoS 2")


async def session():
    async with peer("aiomqtt-session", clean=False) as subscriber:
        await subscriber.subscribe("aiomqtt/session", 2)
    async with peer("aiomqtt-session-publisher") as publisher:
        for number in range(30):
            await publisher.publish("aiomqtt/session", str(number), 1 + number % 2)
        async with peer("aiomqtt-session", clean=False) as subscriber:
            waited = [int(payload) for payload in await payloads(subscriber, 30)]
        # The client hands a message at QoS 2 out once it is released, so the order holds for each QoS by itself.
        for qos in (1, 2):
            seen = [number for number in waited if 1 + number % 2 == qos]
            same(seen, list(range(qos - 1, 30, 2)), f"messages at QoS {qos} that waited")
        async with peer("aiomqtt-session", clean=True) as subscriber:
            # The subscription is gone: only what is subscribed to now comes.
            await publisher.publish("aiomqtt/session", "unheard", 1)
            await subscriber.subscribe("aiomqtt/other", 1)
            await publisher.publish("aiomqtt/other", "heard", 1)
            same(await payloads(subscriber, 1), ["heard"], "after a clean start")


async def request_and_response():
    async with peer("aiomqtt-responder") as responder, peer("aiomqtt-requester") as requester:
        await responder.subscribe("aiomqtt/ask", 1)
        await requester.subscribe("aiomqtt/answer", 1)
        asked = properties(PacketTypes.PUBLISH, ResponseTopic="aiomqtt/answer", CorrelationData=b"id")
        await requester.publish("aiomqtt/ask", "?", 1, properties=asked)
        request = await message(responder)
        topic = request.properties.ResponseTopic if V5 else "aiomqtt/answer"
        data = {"CorrelationData": request.properties.CorrelationData} if V5 else {}
        await responder.publish(topic, "!", 1, properties=properties(PacketTypes.PUBLISH, **data))
        answer = await message(requester)
        same(answer.payload, b"!", "answer")
        same(answer.properties.CorrelationData if V5 else b"id", b"id", "correlation data")


async def many_in_order():
    async with peer("aiomqtt-many-subscriber") as subscriber, peer("aiomqtt-many-publisher") as publisher:
        for qos, count in MANY.items():
            await subscriber.subscribe(f"aiomqtt/many/{qos}", qos)

            async def publish():
                for start in range(0, count, 100):
                    some = range(start, start + 100)
                    await asyncio.gather(*(publisher.publish(f"aiomqtt/many/{qos}", str(n), qos) for n in some))

            _, seen = await asyncio.gather(publish(), payloads(subscriber, count))
            same(seen, [str(number) for number in range(count)], f"{count} messages at QoS {qos}")


run(connect, retained, will, qos_2, session, request_and_response, many_in_order)
