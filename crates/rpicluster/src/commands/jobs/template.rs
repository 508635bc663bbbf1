//! Commands with places for inputs, and where the inputs come from.

use std::io::{self, Read};

use rpicluster_protocol::limits::JOB_BYTES_MAX;

/// Begins the inputs on the command line.
const SEPARATOR: &str = ":::";
/// Stands for the input.
const INPUT: &str = "{}";
/// Stands for the task's number, from 1.
const NUMBER: &str = "{#}";
/// Stands for who works on it.
const SLAVE: &str = "{slave}";

/// The command before `:::` and, if there is one, the inputs behind it.
///
/// # Errors
/// If there is no command, or a second `:::`.
pub(super) fn split(mut words: Vec<String>) -> Result<(Vec<String>, Option<Vec<String>>), String> {
    let inputs = match words.iter().position(|word| word == SEPARATOR) {
        Some(place) => {
            let inputs = words.split_off(place + 1);
            words.pop();
            if inputs.iter().any(|input| input == SEPARATOR) {
                return Err(format!("there can be only one {SEPARATOR}"));
            }
            Some(inputs)
        }
        None => None,
    };
    if words.is_empty() {
        return Err(format!("there is no command before {SEPARATOR}"));
    }
    Ok((words, inputs))
}

/// The command with a place for its input: at the end, if it names none.
pub(super) fn with_input(mut command: Vec<String>) -> Vec<String> {
    if !command.iter().any(|word| word.contains(INPUT)) {
        command.push(INPUT.to_owned());
    }
    command
}

/// The command as it was run, in one line, for people.
pub(super) fn filled(command: &[String], input: &str, number: u32, slave: &str) -> String {
    let fill = |word: &String| shell_word(&fill(word, input, number, slave));
    command.iter().map(fill).collect::<Vec<_>>().join(" ")
}

/// One pass: what an input holds is not looked at again.
fn fill(word: &str, input: &str, number: u32, slave: &str) -> String {
    let number = number.to_string();
    let places = [(INPUT, input), (NUMBER, number.as_str()), (SLAVE, slave)];
    let mut filled = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(place) = rest.find('{') {
        let (before, after) = rest.split_at(place);
        filled.push_str(before);
        match places.iter().find(|(name, _)| after.starts_with(name)) {
            Some((name, value)) => {
                filled.push_str(value);
                rest = &after[name.len()..];
            }
            None => {
                filled.push('{');
                rest = &after[1..];
            }
        }
    }
    filled + rest
}

fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-+=./,:@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The inputs in a text, a line each.
///
/// # Errors
/// If it cannot be read, is no text, or is more than the master takes.
pub(super) fn lines(text: impl Read) -> io::Result<Vec<String>> {
    let mut whole = String::new();
    if text.take(JOB_BYTES_MAX as u64 + 1).read_to_string(&mut whole)? > JOB_BYTES_MAX {
        return Err(io::Error::other(format!("has more than {JOB_BYTES_MAX} bytes: make several jobs of it")));
    }
    Ok(whole.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn inputs_stand_behind_three_colons() {
        assert_eq!(split(words("echo {}")), Ok((words("echo {}"), None)));
        assert_eq!(split(words("echo {} ::: a b")), Ok((words("echo {}"), Some(words("a b")))));
        assert_eq!(split(words("echo :::")), Ok((words("echo"), Some(Vec::new()))));
        assert!(split(words("::: a")).is_err() && split(words("echo ::: a ::: b")).is_err());
    }

    #[test]
    fn the_input_is_appended_where_no_place_is_named() {
        assert_eq!(with_input(words("echo -n")), words("echo -n {}"));
        assert_eq!(with_input(words("cp {} {}.bak")), words("cp {} {}.bak"));
        assert_eq!(with_input(words("echo {#}")), words("echo {#} {}"));
    }

    #[test]
    fn a_command_is_shown_as_it_was_run() {
        let shown = |text: &str, input| filled(&words(text), input, 3, "pi-1");
        assert_eq!(shown("convert {} {}.png {#} {slave} {x} {", "a b"), "convert 'a b' 'a b.png' 3 pi-1 '{x}' '{'");
        assert_eq!(shown("echo {}", "{#} {slave}"), "echo '{#} {slave}'", "an input is not looked at again");
        assert_eq!(shown("echo {}", "it's"), r"echo 'it'\''s'");
        assert_eq!(shown("echo {}", ""), "echo ''");
    }

    #[test]
    fn a_text_has_an_input_in_each_line() {
        assert_eq!(lines(&b"a\nb c\r\n\nd"[..]).unwrap(), ["a", "b c", "", "d"]);
        assert!(lines(&b""[..]).unwrap().is_empty());
        assert!(lines(&b"\xff\n"[..]).is_err());
        assert!(lines(io::repeat(b'\n')).unwrap_err().to_string().contains("several jobs"));
    }
}
