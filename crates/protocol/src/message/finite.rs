//! Numbers of a machine's vitals. JSON can write what no `f32` holds, and what is read as infinite could not be written
//! again: it would turn into `null` on its way through the master.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// For a number that may be left out.
pub(super) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    Option::<f32>::deserialize(deserializer)?.map(finite).transpose()
}

/// The same for three of them.
pub(super) fn optional_three<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[f32; 3]>, D::Error> {
    let Some([a, b, c]) = Option::<[f32; 3]>::deserialize(deserializer)? else { return Ok(None) };
    Ok(Some([finite(a)?, finite(b)?, finite(c)?]))
}

fn finite<E: Error>(number: f32) -> Result<f32, E> {
    if number.is_finite() { Ok(number) } else { Err(E::custom("a number is beyond all bounds")) }
}
