//! The answer `slave_details`: everybody, in parts that fit into a message. A part is made when the one before is gone.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use bytes::Bytes;
use rpicluster_broker::Outgoing;
use rpicluster_protocol::limits::MESSAGE_BYTES_MAX;
use rpicluster_protocol::{Envelope, Part, RequestId, SlaveDetails, SlaveId, ToSlave, encode_to_slave};

use crate::view::Slave;

/// What an envelope adds around the slaves, `re` included: 64 bytes, each escaped to at most six.
const ENVELOPE_BYTES_MAX: usize = 512;

/// What JSON adds to each slave: two quotes, a colon, a comma.
const ENTRY_BYTES: usize = 4;

/// See the module.
pub(crate) struct SlaveList {
    slaves: Peekable<Entries>,
    next_part: u32,
    re: Option<RequestId>,
    address: Outgoing,
    is_over: bool,
}

/// Slaves with the bytes that each takes, read from the view one by one.
struct Entries(IntoIter<Arc<Slave>>);

impl SlaveList {
    /// A list of `slaves` in answer to `re`, to be sent as `address` says, whose payload is not used.
    pub(crate) fn new(slaves: Vec<Arc<Slave>>, re: Option<RequestId>, address: Outgoing) -> SlaveList {
        SlaveList { slaves: Entries(slaves.into_iter()).peekable(), next_part: 0, re, address, is_over: false }
    }
}

impl Iterator for SlaveList {
    type Item = Outgoing;

    fn next(&mut self) -> Option<Outgoing> {
        if self.is_over {
            return None;
        }
        let mut left = MESSAGE_BYTES_MAX - ENVELOPE_BYTES_MAX;
        let mut slaves = BTreeMap::new();
        while let Some((id, details, bytes)) = self.slaves.next_if(|(_, _, bytes)| *bytes <= left) {
            left -= bytes;
            slaves.insert(id, details);
        }
        self.is_over = self.slaves.peek().is_none();
        let part = Some(Part { number: self.next_part, last: self.is_over });
        self.next_part += 1;
        let envelope = Envelope { part, ..Envelope::new(ToSlave::SlaveDetails(slaves)).answering(self.re.clone()) };
        // The sum above keeps it within a message; were it ever wrong, the answer ends instead of going on for ever.
        let payload = encode_to_slave(&envelope).ok()?;
        Some(Outgoing { payload: Bytes::from(payload), ..self.address.clone() })
    }
}

impl Iterator for Entries {
    type Item = (SlaveId, SlaveDetails, usize);

    fn next(&mut self) -> Option<Self::Item> {
        let slave = self.0.next()?;
        let mut details = slave.latest().told();
        // A slave may say as much of itself as fits a message; told with the rest, that can be too long for one.
        let bytes_max = MESSAGE_BYTES_MAX - ENVELOPE_BYTES_MAX;
        let mut bytes = entry_bytes(&slave.id, &details);
        if bytes > bytes_max {
            details.vitals = None;
            bytes = entry_bytes(&slave.id, &details);
        }
        if bytes > bytes_max {
            details.details = None;
            bytes = entry_bytes(&slave.id, &details);
        }
        Some((slave.id.clone(), details, bytes))
    }
}

fn entry_bytes(id: &SlaveId, details: &SlaveDetails) -> usize {
    // What cannot be encoded counts as too long, and is left out above.
    let value = serde_json::to_vec(details).map_or(MESSAGE_BYTES_MAX, |json| json.len());
    id.as_str().len() + value + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use rpicluster_broker::QoS;
    use rpicluster_protocol::{Details, Timestamp, Vitals, parse_to_slave};

    use super::*;
    use crate::view::View;

    fn list(view: &View) -> Vec<Envelope<ToSlave>> {
        let address = Outgoing {
            topic: "t".into(),
            payload: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: false,
            correlation_data: None,
        };
        let re: RequestId = "\"".repeat(64).parse().unwrap();
        SlaveList::new(view.all(), Some(re), address).map(|part| parse_to_slave(&part.payload).unwrap()).collect()
    }

    fn meet(view: &View, name: &str) -> Arc<Slave> {
        view.get_or_meet(&name.parse().unwrap(), Timestamp::from_unix_ms(0)).unwrap()
    }

    #[test]
    fn a_thousand_slaves_arrive_whole_in_parts() {
        let view = View::new(1_000);
        for number in 0..1_000 {
            let slave = meet(&view, &format!("pi-{number:04}"));
            let hostname = Some("\\".repeat(number));
            slave.set_details(Arc::new(Details { hostname, ..Details::default() }));
        }
        let parts = list(&view);
        assert!(parts.len() > 10, "{}", parts.len());
        let mut seen = BTreeMap::new();
        for (number, envelope) in parts.iter().enumerate() {
            let part = envelope.part.unwrap();
            assert_eq!((part.number as usize, part.last), (number, number + 1 == parts.len()));
            assert_eq!(envelope.re.as_ref().unwrap().as_str().len(), 64);
            let ToSlave::SlaveDetails(slaves) = &envelope.message else { panic!("{envelope:?}") };
            seen.extend(slaves.clone());
        }
        assert_eq!(seen.len(), 1_000);
        let details = seen["pi-0999"].details.as_ref().unwrap();
        assert_eq!(details.hostname.as_ref().unwrap().len(), 999);
    }

    #[test]
    fn nobody_is_an_answer_too_and_the_longest_slave_fits() {
        let view = View::new(10);
        assert_eq!(list(&view).len(), 1);
        let long = Some("x".repeat(40_000));
        meet(&view, "a").set_details(Arc::new(Details { hostname: long.clone(), ..Details::default() }));
        let disk = rpicluster_protocol::Disk { mount: "x".repeat(40_000), total: 1, free: 1 };
        meet(&view, "a").set_vitals(Arc::new(Vitals { disks: vec![disk], ..Vitals::default() }));
        meet(&view, "b").set_details(Arc::new(Details { hostname: Some("y".repeat(60_000)), ..Details::default() }));
        let parts = list(&view);
        let told = |part: &Envelope<ToSlave>| match &part.message {
            ToSlave::SlaveDetails(slaves) => slaves.clone(),
            other => panic!("{other:?}"),
        };
        let all: BTreeMap<_, _> = parts.iter().flat_map(told).collect();
        assert!(all["a"].details.is_some() && all["a"].vitals.is_none());
        assert!(all["b"].details.is_none());
    }
}
