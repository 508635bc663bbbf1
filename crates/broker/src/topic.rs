//! Topic names and topic filters (MQTT 4.7).

/// Whether a text is a topic filter (MQTT 4.7.1) of at most so many levels.
pub fn is_valid_filter(filter: &str, levels_max: usize) -> bool {
    if filter.is_empty() {
        return false;
    }
    let mut levels = 0;
    let mut rest = filter.split('/').peekable();
    while let Some(level) = rest.next() {
        levels += 1;
        let valid = match level {
            "+" => true,
            "#" => rest.peek().is_none(),
            _ => !level.contains(['+', '#']),
        };
        if !valid || levels > levels_max {
            return false;
        }
    }
    true
}

/// Whether `filter` matches `topic`; both must be valid.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    // MQTT 4.7.2-1: a wildcard at the first level does not match topics that begin with '$'.
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut filter = filter.split('/');
    let mut topic = topic.split('/');
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

/// The part of a filter before its first wildcard: every topic it matches starts with this, but for the last `/`, since
/// `a/#` matches `a` as well.
pub(crate) fn literal_prefix(filter: &str) -> &str {
    let end = filter.find(['+', '#']).unwrap_or(filter.len());
    filter[..end].trim_end_matches('/')
}

/// How a topic stands to a filter, among topics in the order of their bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The filter matches it.
    Matches,
    /// The filter does not match it, which says nothing about the next one.
    Differs,
    /// No topic from this one on to that text, exclusive, matches.
    NothingBefore(String),
    /// Neither does any after it.
    NothingAfter,
}

/// Compares a topic with a filter, so that a search in the order of bytes can leave out what cannot match: a filter that
/// begins with `+` is not compared with every topic there is.
pub(crate) fn standing(filter: &str, topic: &str) -> Standing {
    // The first byte after '/': no topic below another one reaches it.
    const AFTER_SLASH: &str = "0";
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return Standing::NothingBefore("%".to_owned());
    }
    // The end, within the topic, of what the last `+` stood for.
    let mut last_wildcard = None;
    let exhausted = |last_wildcard: Option<usize>| {
        last_wildcard
            .map_or(Standing::NothingAfter, |end| Standing::NothingBefore([&topic[..end], AFTER_SLASH].concat()))
    };
    let mut at = 0;
    for wanted in filter.split('/') {
        if wanted == "#" {
            return Standing::Matches;
        }
        if at > topic.len() {
            // The topic ends where the filter goes on.
            return Standing::Differs;
        }
        let level = topic[at..].split('/').next().unwrap_or_default();
        if wanted == "+" {
            last_wildcard = Some(at + level.len());
        } else if level != wanted {
            let exact = [&topic[..at], wanted].concat();
            let below = [exact.as_str(), "/"].concat();
            return match topic {
                topic if topic < exact.as_str() => Standing::NothingBefore(exact),
                topic if topic < below.as_str() => Standing::NothingBefore(below),
                _ => exhausted(last_wildcard),
            };
        }
        at += level.len() + 1;
    }
    if at > topic.len() { Standing::Matches } else { exhausted(last_wildcard.max(Some(at - 1))) }
}

/// A topic or filter for the log: who chose it is a stranger.
pub(crate) fn quoted(text: &str) -> String {
    const CHARACTERS_MAX: usize = 100;
    format!("{:?}", text.chars().take(CHARACTERS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_follow_mqtt_4_7_1() {
        for good in ["#", "+", "a", "/", "a/#", "a/+/b", "+/+", "/+", "a//b", "$SYS/#"] {
            assert!(is_valid_filter(good, 8), "{good}");
        }
        for bad in ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "a/b+"] {
            assert!(!is_valid_filter(bad, 8), "{bad}");
        }
        assert!(!is_valid_filter("a/b/c", 2));
    }

    #[test]
    fn matching_follows_mqtt_4_7() {
        let yes = [
            ("#", "a/b"),
            ("a/#", "a"),
            ("a/#", "a/b/c"),
            ("+", "a"),
            ("+/+", "/a"),
            ("/+", "/a"),
            ("a/+/c", "a//c"),
            ("$SYS/#", "$SYS/a"),
            ("a", "a"),
        ];
        let no = [
            ("+", "a/b"),
            ("+", "/a"),
            ("a/+", "a"),
            ("a/+", "a/b/c"),
            ("#", "$SYS/a"),
            ("+/a", "$SYS/a"),
            ("a", "A"),
            ("a", "a/"),
            ("a/b", "a"),
        ];
        for (filter, topic) in yes {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in no {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
        assert_eq!(literal_prefix("a/b/+/c"), "a/b");
        assert_eq!(literal_prefix("a/#"), "a");
        assert_eq!(literal_prefix("#"), "");
    }
}
