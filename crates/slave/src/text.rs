//! Text from elsewhere, made fit for a log line and the status.

/// Longest problem that is told, in characters.
pub(crate) const PROBLEM_CHARACTERS_MAX: usize = 1024;

/// At most that many characters of `text`, control characters escaped.
pub(crate) fn bounded(text: &str, characters_max: usize) -> String {
    let escaped = text.chars().take(characters_max);
    escaped.map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_and_no_length_gets_through() {
        assert_eq!(bounded("a\nb\u{1b}", 10), "a\\nb\\u{1b}");
        assert_eq!(bounded("äbc", 2), "äb");
    }
}
