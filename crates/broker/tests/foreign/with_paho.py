"""paho-mqtt, the client most Python programs use, with its own network thread."""

import queue
import socket
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from scenario import MANY, PATIENCE, PORT, V5, run, same


def properties(kind, **values):
    """MQTT 5 properties of a packet; None in MQTT 3.1.1."""
    if not V5:
        return None
    result = Properties(kind)
    for name, value in values.items():
        setattr(result, name, value)
    return result


class Peer:
    """A connected client with queues of what happened to it."""

    def __init__(self, client_id, clean=True, will=None):
        version = mqtt.MQTTv5 if V5 else mqtt.MQTTv311
        session = {} if V5 else {"clean_session": clean}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id, protocol=version, **session)
        self.messages, self.connects, self.subscribes = queue.Queue(), queue.Queue(), queue.Queue()
        self.client.on_message = lambda client, data, message: self.messages.put(message)
        self.client.on_connect = lambda client, data, flags, code, _: self.connects.put((flags, code))
        self.client.on_subscribe = lambda client, data, mid, codes, _: self.subscribes.put(codes)
        if will:
            self.client.will_set(*will)
        start = {"clean_start": clean, "properties": properties(PacketTypes.CONNECT, SessionExpiryInterval=60)}
        self.client.connect("127.0.0.1", PORT, **(start if V5 else {}))
        self.client.loop_start()
        flags, code = self.connects.get(timeout=PATIENCE)
        same(code.is_failure, False, "CONNACK")
        self.session_present = flags.session_present

    def subscribe(self, topic, qos):
        self.client.subscribe(topic, qos)
        same([code.value for code in self.subscribes.get(timeout=PATIENCE)], [qos], "SUBACK")

    def publish(self, topic, payload, qos=1, retain=False, **values):
        """Publishes and waits until the exchange is complete."""
        info = self.client.publish(topic, payload, qos, retain, properties(PacketTypes.PUBLISH, **values))
        info.wait_for_publish(PATIENCE)

    def message(self):
        return self.messages.get(timeout=PATIENCE)

    def payloads(self, count):
        return [self.message().payload.decode() for _ in range(count)]

    def leave(self):
        self.client.disconnect()
        self.client.loop_stop()

    def lose(self):
        """Breaks the connection without DISCONNECT."""
        broken = threading.Event()
        self.client.on_disconnect = lambda *_: (broken.set(), self.client.disconnect())
        self.client.socket().shutdown(socket.SHUT_RDWR)
        broken.wait(PATIENCE)
        self.client.loop_stop()


def connect():
    peer = Peer("paho-connect")
    same(peer.session_present, False, "session present")
    peer.leave()


def retained():
    publisher = Peer("paho-retained")
    publisher.publish("paho/retained", "kept", retain=True)
    reader = Peer("paho-reader")
    reader.subscribe("paho/retained", 1)
    message = reader.message()
    same((message.payload, message.retain, message.qos), (b"kept", True, 1), "retained message")
    publisher.publish("paho/retained", "", retain=True)
    same(reader.message().retain, False, "live copy")
    reader.leave()
    publisher.leave()


def will():
    watcher = Peer("paho-watcher")
    watcher.subscribe("paho/will", 2)
    Peer("paho-leaving", will=("paho/will", "not this one", 2, False)).leave()
    Peer("paho-lost", will=("paho/will", "gone", 2, False)).lose()
    message = watcher.message()
    same((message.payload, message.qos), (b"gone", 2), "will")
    watcher.leave()


def qos_2():
    subscriber, publisher = Peer("paho-2-subscriber"), Peer("paho-2-publisher")
    subscriber.subscribe("paho/2/+", 2)
    sent = [str(number) for number in range(200)]
    for payload in sent:
        publisher.publish("paho/2/ä", payload, 2)
    same(subscriber.payloads(len(sent)), sent, "QoS 2")
    publisher.leave()
    subscriber.leave()


def session():
    subscriber = Peer("paho-session", clean=False)
    same(subscriber.session_present, False, "session present at first")
    subscriber.subscribe("paho/session", 2)
    subscriber.leave()
    publisher = Peer("paho-session-publisher")
    for number in range(30):
        publisher.publish("paho/session", str(number), 1 + number % 2)
    subscriber = Peer("paho-session", clean=False)
    same(subscriber.session_present, True, "session present")
    # The client hands a message at QoS 2 out once it is released, so the order holds for each QoS by itself.
    waited = [int(payload) for payload in subscriber.payloads(30)]
    for qos in (1, 2):
        seen = [number for number in waited if 1 + number % 2 == qos]
        same(seen, list(range(qos - 1, 30, 2)), f"messages at QoS {qos} that waited")
    subscriber.leave()
    subscriber = Peer("paho-session", clean=True)
    same(subscriber.session_present, False, "session present after a clean start")
    subscriber.leave()
    publisher.leave()


def request_and_response():
    responder, requester = Peer("paho-responder"), Peer("paho-requester")
    responder.subscribe("paho/ask", 1)
    requester.subscribe("paho/answer", 1)
    requester.publish("paho/ask", "?", ResponseTopic="paho/answer", CorrelationData=b"\0id")
    request = responder.message()
    topic = request.properties.ResponseTopic if V5 else "paho/answer"
    values = {"CorrelationData": request.properties.CorrelationData} if V5 else {}
    responder.publish(topic, "!", UserProperty=[("b", "1"), ("a", "2"), ("b", "1")], **values)
    answer = requester.message()
    same(answer.payload, b"!", "answer")
    if V5:
        same(answer.properties.CorrelationData, b"\0id", "correlation data")
        same(answer.properties.UserProperty, [("b", "1"), ("a", "2"), ("b", "1")], "user properties")
    requester.leave()
    responder.leave()


def many_in_order():
    subscriber, publisher = Peer("paho-many-subscriber"), Peer("paho-many-publisher")
    for qos, count in MANY.items():
        subscriber.subscribe(f"paho/many/{qos}", qos)
        for number in range(count):
            info = publisher.client.publish(f"paho/many/{qos}", str(number), qos)
        info.wait_for_publish(PATIENCE)
        same(subscriber.payloads(count), [str(number) for number in range(count)], f"{count} messages at QoS {qos}")
    publisher.leave()
    subscriber.leave()


run(connect, retained, will, qos_2, session, request_and_response, many_in_order)
