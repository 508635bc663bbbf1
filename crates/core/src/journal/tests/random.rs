use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Offer(u32),
    OldOffer(u32),
    RunAlone(u32),
    Cancel(u32),
    Ack(u32, u32),
    Exit(u32),
    Sync,
    Wait(u64),
    Reconnect,
    Disconnect,
    RunnerGone,
    Crash(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = 0u32..6;
    let step = prop_oneof![
        4 => index.clone().prop_map(Step::Offer),
        1 => index.clone().prop_map(Step::OldOffer),
        1 => index.clone().prop_map(Step::RunAlone),
        2 => index.clone().prop_map(Step::Cancel),
        3 => (index.clone(), 0u32..3).prop_map(|(index, seq)| Step::Ack(index, seq)),
        4 => index.prop_map(Step::Exit),
        6 => Just(Step::Sync),
        1 => (0u64..700_000).prop_map(Step::Wait),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Disconnect),
        1 => Just(Step::RunnerGone),
        1 => any::<bool>().prop_map(Step::Crash),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// `Slave::apply` asserts on the way that nothing begins that is not durable, and nothing is told that is not recorded.
    #[test]
    fn nothing_runs_twice_and_no_outcome_changes_unless_it_is_lost_with_the_power(steps in steps()) {
        let mut slave = Slave::new(2);
        let mut outcomes: HashMap<AttemptKey, Outcome> = HashMap::new();
        // What the master has acknowledged to the end, and in which session: late copies come in that one only.
        let mut done: HashMap<AttemptKey, u64> = HashMap::new();
        let mut boot = 1;
        for step in steps {
            let is_past = |index: u32, slave: &Slave| done.get(&key(index)).is_some_and(|at| *at != slave.session);
            match step {
                Step::Offer(index) | Step::RunAlone(index) | Step::Cancel(index) if is_past(index, &slave) => {}
                Step::Offer(index) => slave.offer(key(index)),
                Step::OldOffer(index) => {
                    let offer = offer(key(index), slave.session - 1);
                    slave.input(Input::Offer { offer, verdict: Verdict::Run });
                }
                Step::RunAlone(index) => {
                    let offer = offer(key(index), slave.session);
                    slave.input(Input::Offer { offer, verdict: Verdict::RunAlone });
                }
                Step::Cancel(index) => slave.input(Input::Cancel(TaskCancel { key: key(index) })),
                // A master acknowledges only what it was told.
                Step::Ack(index, seq) => {
                    if outcomes.contains_key(&key(index)) && seq == 2 {
                        slave.input(ack(key(index), 2));
                        slave.input(Input::Ack(TaskAck { key: key(index), seq: 2, stdout: 3, stderr: 0 }));
                        done.entry(key(index)).or_insert(slave.session);
                    } else {
                        slave.input(ack(key(index), 0));
                    }
                }
                Step::Exit(index) => {
                    if slave.running.remove(&key(index)) {
                        slave.input(exited(key(index)));
                    }
                }
                Step::Sync => slave.sync(),
                Step::Wait(millis) => slave.wait(Duration::from_millis(millis)),
                Step::Reconnect => slave.reconnect(),
                Step::Disconnect => slave.input(Input::SessionEnded),
                Step::RunnerGone => {
                    slave.running.clear();
                    slave.input(Input::RunnerGone { reason: "gone".to_owned() });
                }
                Step::Crash(boots) => {
                    boot += u32::from(boots);
                    slave.crash(&format!("boot-{boot}"));
                    // Of what was told it has forgotten what was not durable.
                    outcomes.retain(|key, outcome| {
                        let mut held = slave.durable.get(key).into_iter().flatten();
                        held.any(|entry| matches!(entry, JournalEntry::Finished(end) if end.outcome == *outcome))
                    });
                }
            }
            prop_assert!(slave.running.len() <= 2);
            prop_assert!(slave.journal.running() <= 2);
            for entry in slave.told() {
                if let JournalEntry::Finished(end) = entry {
                    let first = *outcomes.entry(end.key).or_insert(end.outcome);
                    prop_assert_eq!(first, end.outcome);
                }
            }
        }
        for (key, times) in &slave.begun {
            prop_assert!(*times == 1, "{:?} began {} times", key, times);
        }
    }
}
