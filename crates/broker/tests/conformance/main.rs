//! MQTT 3.1.1 and 5.0, chapter by chapter, byte by byte. A test is named after the section that it checks: `mqtt_…` has the
//! number of a section or of a normative statement that both versions share, `v3_…` and `v5_…` that of one version alone.
//!
//! Each body is written once and runs against this broker and against Debian's mosquitto as the reference; where mosquitto
//! differs, the test says so in a line.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

#[path = "../common/mod.rs"]
mod common;
/// How a body is run on brokers and versions.
mod target;

/// 3.4 to 3.7: PUBACK, PUBREC, PUBREL, PUBCOMP; 4.3: the exchanges of QoS 1 and 2.
mod acknowledgements;
/// 3.2: what the broker answers to CONNECT.
mod connack;
/// 3.1: CONNECT.
mod connect;
/// 3.14: DISCONNECT; 3.12: PINGREQ; 3.15: AUTH.
mod disconnect;
/// 4.9 in MQTT 5: receive maximum and maximum packet size, in both directions.
mod flow_control;
/// 1.5, 2 and 4.8: representations of data, fixed headers, malformed packets of each type.
mod format;
/// Clients of both versions with each other.
mod interoperation;
/// 3.3: properties of PUBLISH and of subscriptions in MQTT 5.
mod properties;
/// 3.3: PUBLISH; 4.6: order.
mod publish;
/// 3.3.1.3: retained messages.
mod retained;
/// 3.1.2.4, 4.1 and 4.4: sessions and what is sent again.
mod sessions;
/// 3.8 to 3.11: SUBSCRIBE and UNSUBSCRIBE.
mod subscribe;
/// 4.7: topic names and filters.
mod topics;
/// 3.1.2.5: wills.
mod wills;
