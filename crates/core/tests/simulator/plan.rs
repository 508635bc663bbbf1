//! What a seed asks for: jobs, and what goes wrong.

use super::*;

impl World {
    /// What goes wrong, and when.
    pub(super) fn plan(&mut self) {
        self.at(0, Event::HeadStart);
        for node in 0..self.nodes.len() {
            self.within(3_000, Event::Connect(node));
        }
        let length = self.random.u64(5_000..FAULTS_MS);
        for _ in 0..self.random.u64(1..=4) {
            self.within(length, Event::Submit);
        }
        for _ in 0..self.random.u64(0..25) {
            let node = self.random.usize(0..self.nodes.len());
            let event = match self.random.u8(0..22) {
                0..3 => Event::HeadCrash,
                3..6 => Event::Crash(node, false),
                6..9 => Event::Crash(node, true),
                9 => Event::LoseJournal(node),
                10..15 => Event::Disconnect(node),
                15 => Event::CancelJob,
                16 => Event::Drain(node),
                17 => Event::DiskFault,
                18 => Event::Backup,
                19 => Event::Silent(node),
                20 => Event::Remove(node),
                _ => Event::Restore,
            };
            self.within(length, event);
        }
        self.at(length, Event::Heal);
    }

    pub(super) fn submit(&mut self) {
        if self.head.is_none() || self.disk_fails {
            return;
        }
        self.submitted += 1;
        let steps = (0..self.random.u32(1..=2)).map(|number| self.random_step(number)).collect();
        let spec = JobSpec { name: None, requester: "simulator".to_owned(), steps };
        let job = JobId(self.disk.next_job);
        self.disk.next_job += 1;
        self.tell_head(TaskInput::Submit(job, Arc::new(spec)));
    }

    /// What it runs names this very job, so that a result of other work is known.
    pub(super) fn random_step(&mut self, number: u32) -> Step {
        let random = &mut self.random;
        let inputs: Option<Vec<String>> =
            random.bool().then(|| (0..random.u32(1..=6)).map(|input| format!("i{input}")).collect());
        let last = if inputs.is_some() { "{}" } else { "{slave}" };
        let argv = vec![format!("w{}/", self.submitted), last.to_owned()];
        Step {
            name: None,
            on: "all".to_owned(),
            spec: TaskSpec {
                work: Work::Exec { argv },
                env: BTreeMap::new(),
                cwd: None,
                stdin: None,
                run_as: None,
                timeout_ms: None,
                output_limit: 1_000,
            },
            slaves: self.nodes.iter().map(|node| node.id.clone()).collect(),
            inputs,
            retries: random.u32(0..=2),
            idempotent: random.bool(),
            wait_ms: random.bool().then(|| random.u64(0..60_000)),
            batch: random.bool().then(|| random.u32(1..=3)),
            max_failures: random.bool().then(|| random.u32(1..=3)),
            after: if number == 1 && random.bool() { vec![0] } else { Vec::new() },
        }
    }
}
