//! Slaves that say the same, shown together when all have ended.

use std::collections::HashMap;
use std::time::Instant;

use rpicluster_protocol::{SlaveId, Stream, TaskInfo, TaskState};

use super::held::{Held, Written};
use super::names;
use super::outcome::{CUT, name, words};
use super::printer::Printer;
use super::progress::Progress;
use super::view::{Change, View};
use super::watch::Presenter;
use crate::exit::Failure;
use crate::http::MasterClient;

const RULE: &str = "----------------";

/// Shows equal outputs once.
pub(super) struct Fold {
    client: MasterClient,
    held: Held,
    started: Instant,
}

/// What a slave said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Said {
    written: Written,
    result: Option<String>,
    /// In words, unless it succeeded.
    trouble: Option<String>,
}

impl Fold {
    /// Asks `client` for what there is no room to keep.
    pub(super) fn new(client: MasterClient) -> Fold {
        Fold { client, held: Held::default(), started: Instant::now() }
    }
}

impl Presenter for Fold {
    fn show(&mut self, _out: &mut Printer, _view: &View, change: &Change) -> Result<(), Failure> {
        if let Change::Output(output) = change {
            self.held.push(output);
        }
        Ok(())
    }

    fn pause(&mut self, out: &mut Printer, view: &View) {
        out.status(|| Progress::of(view).line(self.started.elapsed()));
    }

    fn end(&mut self, out: &mut Printer, view: &View) -> Result<(), Failure> {
        let mut all = Vec::new();
        for task in view.tasks() {
            let written = self.held.take(&self.client, task.task.job, task)?;
            all.push((task, said(task, written)));
            if task.truncated {
                out.trouble(&name(task), CUT);
            }
        }
        for (said, slaves) in groups(all) {
            out.bytes(Stream::Stdout, header(&slaves, said.trouble.as_deref()).as_bytes())?;
            out.bytes(Stream::Stdout, &whole_lines(said.written.stdout))?;
            if let Some(result) = said.result {
                out.bytes(Stream::Stdout, format!("{result}\n").as_bytes())?;
            }
            out.bytes(Stream::Stderr, &whole_lines(said.written.stderr))?;
        }
        Ok(())
    }
}

fn said(task: &TaskInfo, written: Written) -> Said {
    let trouble = (task.state != TaskState::Succeeded).then(|| words(task));
    Said { written, result: task.result.as_ref().map(ToString::to_string), trouble }
}

/// Those who said the same, the largest group first. Who said nothing is left to the summary.
fn groups(all: Vec<(&TaskInfo, Said)>) -> Vec<(Said, Vec<SlaveId>)> {
    let mut groups: HashMap<Said, Vec<SlaveId>> = HashMap::new();
    for (task, said) in all {
        if said.written != Written::default() || said.result.is_some() {
            groups.entry(said).or_default().extend(task.slave.clone());
        }
    }
    let mut groups: Vec<(Said, Vec<SlaveId>)> = groups.into_iter().collect();
    groups.iter_mut().for_each(|(_, slaves)| slaves.sort_unstable());
    groups.sort_by(|(_, one), (_, other)| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
    groups
}

/// As `clush -b` writes it, and how they ended.
fn header(slaves: &[SlaveId], trouble: Option<&str>) -> String {
    let names = names::fold(slaves.iter()).join(",");
    let trouble = trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
    format!("{RULE}\n{names} ({}){trouble}\n{RULE}\n", slaves.len())
}

fn whole_lines(mut text: Vec<u8>) -> Vec<u8> {
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::task;
    use super::*;

    #[test]
    fn equal_outputs_are_put_together_and_the_largest_group_comes_first() {
        let tasks: Vec<TaskInfo> = (1..=5).map(|n| task(n, &format!("pi-{n}"), TaskState::Succeeded)).collect();
        let failed = TaskInfo { exit_code: Some(3), ..task(6, "pi-6", TaskState::Failed) };
        let says = |task, text: &str| (task, said(task, Written { stdout: text.into(), stderr: Vec::new() }));
        let all = vec![
            says(&tasks[0], "old"),
            says(&tasks[3], "new"),
            says(&tasks[1], "new"),
            says(&tasks[2], "new"),
            says(&failed, "new"),
            says(&tasks[4], ""),
        ];
        let headers: Vec<String> =
            groups(all).iter().map(|(said, slaves)| header(slaves, said.trouble.as_deref())).collect();
        let line = |text: &str| format!("{RULE}\n{text}\n{RULE}\n");
        assert_eq!(headers, [line("pi-[2-4] (3)"), line("pi-1 (1)"), line("pi-6 (1): exit 3")]);
    }

    #[test]
    fn a_group_ends_with_a_line_end() {
        assert_eq!(whole_lines(b"a".to_vec()), b"a\n");
        assert_eq!(whole_lines(b"a\n".to_vec()), b"a\n");
        assert_eq!(whole_lines(Vec::new()), b"");
    }
}
