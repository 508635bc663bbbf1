//! Messages to bytes and back. No other file of the project spells a type on the wire.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Envelope, FromSlave, MessageError, Part, ToSlave};
use crate::id::{RequestId, quoted};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::task::Compact;
use crate::topic::Upward;

#[derive(Serialize, Deserialize)]
struct MasterTimeBody {
    unix_ms: u64,
}

/// The envelope as it is read: the payload waits until the type is known.
#[derive(Deserialize)]
struct RawEnvelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    re: Option<Cow<'a, str>>,
    part: Option<u32>,
    last: Option<bool>,
}

/// The envelope as it is written.
#[derive(Serialize)]
struct EnvelopeOut<'a, P> {
    #[serde(rename = "type")]
    kind: &'static str,
    payload: P,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    re: Option<&'a RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<bool>,
}

/// Reads what a slave sent on `leaf` of its own topics.
///
/// # Errors
/// If the bytes are no envelope, the type is unknown or belongs on another topic, or the payload does not fit the type.
pub fn parse_from_slave(leaf: Upward, bytes: &[u8]) -> Result<Envelope<FromSlave>, MessageError> {
    parse(bytes, |kind, payload| {
        let message = match kind {
            "state" => FromSlave::State(payload.read()?),
            "computer_details" => FromSlave::ComputerDetails(payload.read()?),
            "vitals" => FromSlave::Vitals(payload.read()?),
            "message" => FromSlave::Message(payload.read()?),
            "info" => FromSlave::Info(payload.read::<String>()?.into()),
            "task_started" => FromSlave::TaskStarted(payload.read_several()?),
            "task_finished" => FromSlave::TaskFinished(payload.read_several()?),
            "task_rejected" => FromSlave::TaskRejected(payload.read_several()?),
            "task_output" => FromSlave::TaskOutput(payload.read_several()?),
            "task_journal" => FromSlave::TaskJournal(payload.read()?),
            "task_lease" => FromSlave::TaskLease(payload.read()?),
            _ => return Err(format!("type {:?} is unknown", quoted(kind))),
        };
        if message.leaf() == leaf { Ok(message) } else { Err(format!("type {kind:?} does not belong on this topic")) }
    })
}

/// Reads what the master sent.
///
/// # Errors
/// As [`parse_from_slave`].
pub fn parse_to_slave(bytes: &[u8]) -> Result<Envelope<ToSlave>, MessageError> {
    parse(bytes, |kind, payload| {
        Ok(match kind {
            "state" => ToSlave::State(payload.read()?),
            "master_info" => ToSlave::MasterInfo(payload.read()?),
            "slave_details" => ToSlave::SlaveDetails(payload.read()?),
            "master_time" => ToSlave::MasterTime { unix_ms: payload.read::<MasterTimeBody>()?.unix_ms },
            "bad_message" => ToSlave::BadMessage(payload.read()?),
            "announce" => ToSlave::Announce,
            "task_offer" => ToSlave::TaskOffer(payload.read_several()?),
            "task_cancel" => ToSlave::TaskCancel(payload.read_several()?),
            "task_ack" => ToSlave::TaskAck(payload.read_several()?),
            "lease_ack" => ToSlave::LeaseAck(payload.read()?),
            _ => return Err(format!("type {:?} is unknown", quoted(kind))),
        })
    })
}

/// The bytes of what a slave says.
///
/// # Errors
/// If they would exceed [`MESSAGE_BYTES_MAX`].
pub fn encode_from_slave(envelope: &Envelope<FromSlave>) -> Result<Vec<u8>, MessageError> {
    match &envelope.message {
        FromSlave::State(state) => encode(envelope, "state", state),
        FromSlave::ComputerDetails(details) => encode(envelope, "computer_details", details),
        FromSlave::Vitals(vitals) => encode(envelope, "vitals", vitals),
        FromSlave::Message(text) => encode(envelope, "message", text),
        FromSlave::Info(info) => encode(envelope, "info", info.as_str()),
        FromSlave::TaskStarted(all) => encode(envelope, "task_started", Compact(all)),
        FromSlave::TaskFinished(all) => encode(envelope, "task_finished", Compact(all)),
        FromSlave::TaskRejected(all) => encode(envelope, "task_rejected", Compact(all)),
        FromSlave::TaskOutput(all) => encode(envelope, "task_output", Compact(all)),
        FromSlave::TaskJournal(journal) => encode(envelope, "task_journal", journal),
        FromSlave::TaskLease(lease) => encode(envelope, "task_lease", lease),
    }
}

/// The bytes of what the master says.
///
/// # Errors
/// If they would exceed [`MESSAGE_BYTES_MAX`].
pub fn encode_to_slave(envelope: &Envelope<ToSlave>) -> Result<Vec<u8>, MessageError> {
    match &envelope.message {
        ToSlave::State(state) => encode(envelope, "state", state),
        ToSlave::MasterInfo(details) => encode(envelope, "master_info", details),
        ToSlave::SlaveDetails(slaves) => encode(envelope, "slave_details", slaves),
        ToSlave::MasterTime { unix_ms } => encode(envelope, "master_time", MasterTimeBody { unix_ms: *unix_ms }),
        ToSlave::BadMessage(bad) => encode(envelope, "bad_message", bad),
        ToSlave::Announce => encode(envelope, "announce", ()),
        ToSlave::TaskOffer(all) => encode(envelope, "task_offer", Compact(all)),
        ToSlave::TaskCancel(all) => encode(envelope, "task_cancel", Compact(all)),
        ToSlave::TaskAck(all) => encode(envelope, "task_ack", Compact(all)),
        ToSlave::LeaseAck(lease) => encode(envelope, "lease_ack", lease),
    }
}

fn encode<M>(envelope: &Envelope<M>, kind: &'static str, payload: impl Serialize) -> Result<Vec<u8>, MessageError> {
    let refused = |problem| MessageError { re: envelope.id.clone(), problem };
    let out = EnvelopeOut {
        kind,
        payload,
        id: envelope.id.as_ref(),
        re: envelope.re.as_ref(),
        part: envelope.part.map(|part| part.number),
        last: envelope.part.map(|part| part.last),
    };
    let bytes = serde_json::to_vec(&out).map_err(|error| refused(format!("{kind} cannot be encoded: {error}")))?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        let size = bytes.len();
        return Err(refused(format!("{kind} has {size} bytes, more than the {MESSAGE_BYTES_MAX} of a message")));
    }
    Ok(bytes)
}

/// A payload whose type is being decided.
struct Payload<'a> {
    kind: &'a str,
    json: &'a str,
}

impl Payload<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_str(self.json).map_err(|error| format!("payload of {}: {error}", self.kind))
    }

    /// One, or an array of them.
    fn read_several<T: DeserializeOwned>(&self) -> Result<Vec<T>, String> {
        if self.json.starts_with('[') { self.read() } else { Ok(vec![self.read()?]) }
    }
}

fn parse<M>(
    bytes: &[u8],
    message_of: impl FnOnce(&str, Payload<'_>) -> Result<M, String>,
) -> Result<Envelope<M>, MessageError> {
    let anonymous = |problem| MessageError { re: None, problem };
    if bytes.len() > MESSAGE_BYTES_MAX {
        let size = bytes.len();
        return Err(anonymous(format!("message has {size} bytes, more than {MESSAGE_BYTES_MAX}")));
    }
    let raw: RawEnvelope<'_> = serde_json::from_slice(bytes)
        .map_err(|error| anonymous(format!("not an envelope {{\"type\": …, \"payload\": …}}: {error}")))?;
    let id = raw.id.as_deref().map(str::parse::<RequestId>).transpose();
    let id = id.map_err(|error| anonymous(format!("field id: {error}")))?;
    let refused = |problem| MessageError { re: id.clone(), problem };
    let re = raw.re.as_deref().map(str::parse::<RequestId>).transpose();
    let re = re.map_err(|error| refused(format!("field re: {error}")))?;
    let part = match (raw.part, raw.last) {
        (None, None) => None,
        (number, last) => Some(Part { number: number.unwrap_or(0), last: last.unwrap_or(false) }),
    };
    let payload = Payload { kind: &raw.kind, json: raw.payload.map_or("null", RawValue::get) };
    let message = message_of(&raw.kind, payload).map_err(refused)?;
    Ok(Envelope { message, id, re, part })
}
