//! Many slaves in few characters: `pi-[1-3,7]`.

use std::collections::BTreeMap;

use rpicluster_protocol::SlaveId;

/// The ids with those that differ only in their last number put together, as targets are written.
pub(super) fn fold<'a>(ids: impl Iterator<Item = &'a SlaveId>) -> Vec<String> {
    let mut groups: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    let mut alone: Vec<&str> = Vec::new();
    for id in ids {
        match split(id.as_str()) {
            Some((prefix, number)) => groups.entry(prefix).or_default().push(number),
            None => alone.push(id.as_str()),
        }
    }
    let numbered = groups.into_iter().map(|(prefix, mut numbers)| {
        numbers.sort_unstable();
        numbers.dedup();
        match numbers[..] {
            [number] => format!("{prefix}{number}"),
            _ => format!("{prefix}[{}]", ranges(&numbers)),
        }
    });
    let mut names: Vec<String> = alone.into_iter().map(str::to_owned).chain(numbered).collect();
    names.sort_unstable();
    names
}

/// An id without its last number, and the number; none if it does not end with one, or with one that begins with 0.
fn split(id: &str) -> Option<(&str, u32)> {
    let prefix = id.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &id[prefix.len()..];
    let number = digits.parse().ok()?;
    (digits.len() == 1 || !digits.starts_with('0')).then_some((prefix, number))
}

/// Ascending numbers as ranges: `1-3,7`.
fn ranges(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next));
    let range = |run: &[u32]| match run {
        [first, .., last] => format!("{first}-{last}"),
        [one] => one.to_string(),
        [] => String::new(),
    };
    runs.map(range).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges_and_the_rest_stays() {
        let ids = ["pi-2", "pi-1", "pi-3", "pi-7", "head", "pi-01", "lab-9", "pi-7-ab01", "pi-0"];
        let ids: Vec<SlaveId> = ids.iter().map(|id| id.parse().unwrap()).collect();
        assert_eq!(fold(ids.iter()), ["head", "lab-9", "pi-01", "pi-7-ab01", "pi-[0-3,7]"]);
        assert!(fold([].into_iter()).is_empty());
    }
}
