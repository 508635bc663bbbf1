//! What the master says of itself on its own topic.

use bytes::Bytes;
use rpicluster_broker::{Outgoing, QoS};
use rpicluster_protocol::limits::PROTOCOL_VERSION;
use rpicluster_protocol::{
    Envelope, Liveness, MessageError, SessionId, State, ToSlave, Topic, TopicRoot, encode_to_slave,
};

/// Online, or offline for a reason, as a retained message.
pub(crate) fn own_state(
    root: &TopicRoot,
    session: &SessionId,
    offline: Option<&str>,
) -> Result<Outgoing, MessageError> {
    let state = State {
        state: if offline.is_some() { Liveness::Offline } else { Liveness::Online },
        session: session.clone(),
        protocol: Some(PROTOCOL_VERSION),
        boot_id: None,
        version: Some(crate::VERSION.to_owned()),
        slots: None,
        ahead: None,
        reason: offline.map(str::to_owned),
    };
    Ok(Outgoing {
        topic: root.name(&Topic::MasterState),
        payload: Bytes::from(encode_to_slave(&Envelope::new(ToSlave::State(state)))?),
        qos: QoS::AtLeastOnce,
        retain: true,
        correlation_data: None,
    })
}
