//! What an agent does because its journal says so: it writes, runs, and tells.

use super::*;

impl World {
    pub(super) fn apply(&mut self, node: usize, effects: Vec<Effect>) {
        let start = self.nodes[node].start;
        for effect in effects {
            match effect {
                Effect::Record(record) => self.nodes[node].written.push(record),
                Effect::Spawn { offer, lease_end } => self.spawn(node, &offer, lease_end),
                Effect::Extend { key, lease_end } => {
                    if let Some(run) = self.nodes[node].running.get_mut(&key) {
                        run.lease_end = lease_end;
                        self.at(lease_end.as_millis().saturating_sub(self.clock), Event::LeaseEnds(node, start, key));
                    }
                }
                Effect::Kill { key } => self.within(9_000, Event::RunEnds(node, start, key, Outcome::Canceled)),
                Effect::Forget { key } => drop(self.nodes[node].spool.remove(&key)),
                Effect::Tell(entry) => {
                    self.send_output(node, entry.key());
                    self.send(node, Up::Event(entry));
                }
                Effect::TellJournal => {
                    let (journal, entries) = (self.nodes[node].journal_id, self.nodes[node].entries());
                    self.send(node, Up::Journal(journal, entries));
                    let mut keys: Vec<AttemptKey> = self.nodes[node].spool.keys().copied().collect();
                    keys.sort();
                    keys.into_iter().for_each(|key| self.send_output(node, key));
                }
                Effect::Renew(lease) => self.send(node, Up::Lease(lease)),
            }
        }
        self.sync_soon(node);
    }

    pub(super) fn sync_soon(&mut self, node: usize) {
        let now = Moment::from_millis(self.clock);
        let Some(journal) = self.nodes[node].journal.as_mut() else { return };
        if journal.sync_due().is_none_or(|at| at > now) {
            return;
        }
        let (records, start) = (journal.recorded(), self.nodes[node].start);
        self.within(15, Event::Synced(node, start, records));
        if self.bug == Some(Bug::SpawnBeforeSync) {
            let effects = self.nodes[node].handle(self.clock, Input::Synced { records });
            self.apply(node, effects);
        }
    }

    pub(super) fn spawn(&mut self, node: usize, offer: &TaskOffer, lease_end: Moment) {
        let (key, start) = (offer.key, self.nodes[node].start);
        let bytes = self.random.u64(0..40);
        self.nodes[node].begin(offer, lease_end, bytes);
        self.checks.begins(key, node, &self.nodes, &self.disk);
        let takes = match self.random.u8(..10) {
            0..6 => 500,
            6..9 => 20_000,
            _ => 400_000,
        };
        let outcomes = [Outcome::Succeeded, Outcome::Succeeded, Outcome::Failed, Outcome::TimedOut];
        let outcome = outcomes[self.random.usize(..outcomes.len())];
        self.within(takes, Event::RunEnds(node, start, key, outcome));
        self.at(lease_end.as_millis().saturating_sub(self.clock), Event::LeaseEnds(node, start, key));
    }

    pub(super) fn run_ends(&mut self, node: usize, key: AttemptKey, outcome: Outcome) {
        let Some(run) = self.nodes[node].running.remove(&key) else { return };
        self.checks.ends(key, Some(outcome));
        self.nodes[node].spool.insert(key, (run.bytes, 0));
        let finished =
            TaskFinished { stdout: run.bytes, result: Some(run.token.into()), ..TaskFinished::new(key, 0, outcome) };
        let effects = self.nodes[node].handle(self.clock, Input::Exited(Box::new(finished)));
        self.apply(node, effects);
    }

    /// What the master does not have yet of an attempt's output.
    pub(super) fn send_output(&mut self, node: usize, key: AttemptKey) {
        let Some((bytes, mut offset)) = self.nodes[node].spool.get(&key).copied() else { return };
        while offset < bytes {
            let data = vec![b'x'; (bytes - offset).min(16) as usize];
            let next = offset + data.len() as u64;
            self.send(node, Up::Output(TaskOutput { key, stream: Stream::Stdout, offset, gap: false, data }));
            offset = next;
        }
    }
}
