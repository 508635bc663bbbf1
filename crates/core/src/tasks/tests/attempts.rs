use super::*;

#[test]
fn output_is_recorded_once_and_a_result_waits_for_it() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.forget();
    let recorded = |desk: &mut Desk| -> Vec<(u64, String, bool)> {
        let all = desk.effects.drain(..).filter_map(|effect| match effect {
            TaskEffect::Output(output) => Some((output.offset, String::from_utf8(output.data).unwrap(), output.gap)),
            _ => None,
        });
        all.collect()
    };
    desk.output("a", 0, "abc", false);
    desk.output("a", 0, "abc", false);
    desk.output("a", 1, "bcde", false);
    desk.output("a", 9, "x", false);
    assert_eq!(recorded(&mut desk), [(0, "abc".to_owned(), false), (3, "de".to_owned(), false)]);
    let JournalEntry::Finished(end) = finished(0, 1, Outcome::Succeeded) else { unreachable!() };
    desk.event("a", JournalEntry::Finished(Box::new(TaskFinished { stdout: 10, ..*end })));
    assert_eq!((desk.state(0), desk.effects.as_slice()), (TaskState::Offered, [].as_slice()));
    desk.output("a", 8, "yz", true);
    assert_eq!(desk.state(0), TaskState::Succeeded);
    assert!(desk.tasks.task(id(0)).unwrap().gap);
    assert!(
        desk.effects.iter().any(|effect| matches!(effect, TaskEffect::Ack(_, ack) if ack.seq == 2 && ack.stdout == 10))
    );
    assert_eq!(recorded(&mut desk), [(8, "yz".to_owned(), true)]);
}

#[test]
fn a_result_whose_output_never_comes_counts_when_the_lease_is_over() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    let JournalEntry::Finished(end) = finished(0, 1, Outcome::Succeeded) else { unreachable!() };
    desk.event("a", JournalEntry::Finished(Box::new(TaskFinished { stdout: 10, ..*end })));
    desk.down("a");
    desk.pass(master_lease(LEASE));
    assert_eq!(desk.state(0), TaskState::Succeeded);
    assert!(desk.tasks.task(id(0)).unwrap().gap);
}

#[test]
fn leases_are_renewed_and_what_was_given_up_is_ended() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.event("a", started(0, 1));
    let leased = |index, attempt| LeasedAttempt { task: id(index), attempt };
    desk.pass(LEASE);
    desk.forget();
    let lease = TaskLease { epoch: EPOCH, renewal: 4, attempts: vec![leased(0, 1), leased(7, 1)] };
    desk.handle(TaskInput::Lease(slave("a"), lease));
    assert_eq!(
        desk.effects,
        [
            TaskEffect::Cancel(slave("a"), TaskCancel { key: key(7, 1) }),
            TaskEffect::LeaseAck(slave("a"), TaskLease { epoch: EPOCH, renewal: 4, attempts: vec![leased(0, 1)] }),
        ]
    );
    desk.pass(LEASE);
    assert_eq!(desk.state(0), TaskState::Running);
    desk.pass(master_lease(LEASE) - LEASE);
    assert_eq!(desk.state(0), TaskState::Lost);
}

#[test]
fn an_offer_that_nobody_answers_is_made_again() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.offered();
    desk.pass(RESEND_MIN);
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 1)]);
    desk.pass(RESEND_MIN);
    assert_eq!(desk.offered(), []);
    desk.pass(RESEND_MIN);
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 1)]);
    desk.event("a", started(0, 1));
    desk.pass(RESEND_MAX);
    assert_eq!(desk.offered(), []);
}

#[test]
fn attempts_of_another_epoch_are_ended_and_forgotten() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.forget();
    let foreign = AttemptKey { epoch: Epoch(8), ..key(0, 1) };
    desk.event("a", JournalEntry::Started(TaskStarted { key: foreign, seq: 1, boot_id: None }));
    assert_eq!(desk.canceled(), [foreign]);
    desk.forget();
    let JournalEntry::Finished(end) = finished(0, 1, Outcome::Succeeded) else { unreachable!() };
    desk.event("a", JournalEntry::Finished(Box::new(TaskFinished { key: foreign, ..*end })));
    assert_eq!((desk.state(0), desk.effects.len()), (TaskState::Offered, 1));
    assert_eq!(desk.acknowledged()[0].key, foreign);
}

#[test]
fn nobody_answers_for_another() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.ready("b", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.event("b", finished(0, 1, Outcome::Succeeded));
    desk.output("b", 0, "lie", false);
    let lease = TaskLease { epoch: EPOCH, renewal: 1, attempts: vec![LeasedAttempt { task: id(0), attempt: 1 }] };
    desk.handle(TaskInput::Lease(slave("b"), lease));
    assert_eq!((desk.state(0), desk.tasks.task(id(0)).unwrap().stdout), (TaskState::Offered, 0));
}

#[test]
fn a_result_of_an_attempt_that_was_replaced_is_kept_beside() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![Step { retries: 1, idempotent: true, ..step(&["a"], None) }]);
    desk.event("a", finished(0, 1, Outcome::Lost));
    desk.pass(RETRY_WAIT_MIN);
    assert_eq!(desk.state(0), TaskState::Offered);
    desk.forget();
    desk.event("a", finished(0, 1, Outcome::Succeeded));
    assert!(matches!(desk.effects[..], [TaskEffect::LateResult(_), TaskEffect::Ack(..)]), "{:?}", desk.effects);
    assert_eq!(desk.state(0), TaskState::Offered);
    desk.forget();
    desk.event("a", started(0, 1));
    assert_eq!(desk.canceled(), [key(0, 1)], "what runs for nothing is ended");
}

#[test]
fn what_may_not_run_twice_is_lost_and_a_late_result_settles_it() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![Step { retries: 5, ..step(&["a"], None) }]);
    desk.event("a", started(0, 1));
    desk.down("a");
    desk.pass(master_lease(LEASE));
    assert_eq!(desk.state(0), TaskState::Lost);
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Failed);
    desk.tasks.forget_ended();
    desk.acknowledged();
    desk.up("a", "s2", 1);
    desk.journal("a", "s2", vec![finished(0, 1, Outcome::Succeeded)]);
    assert_eq!(desk.state(0), TaskState::Succeeded);
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Succeeded);
    assert_eq!(desk.acknowledged().len(), 1);
}

fn took(index: u32, millis: u64) -> JournalEntry {
    let JournalEntry::Finished(end) = finished(index, 1, Outcome::Succeeded) else { panic!("an end") };
    JournalEntry::Finished(Box::new(TaskFinished { duration_ms: millis, ..*end }))
}

/// A slave with one slot and room for three ahead, and a queue of that many tasks for it.
fn ahead(queue: u32, adjust: fn(Step) -> Step) -> Desk {
    let mut desk = Desk::new();
    desk.up_with("a", "s1", Slots { at_once: 1, ahead: 3 });
    desk.journal("a", "s1", Vec::new());
    let inputs: Vec<String> = (0..queue).map(|index| index.to_string()).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    desk.submit(vec![adjust(step(&["a"], Some(&inputs)))]);
    desk
}

#[test]
fn short_tasks_of_a_long_queue_are_offered_ahead_and_no_others() {
    let mut desk = ahead(20, |step| step);
    assert_eq!(desk.offered().len(), 1, "nobody knows how long they take");
    desk.event("a", took(0, 5));
    assert_eq!(desk.offered().len(), 4);
    for index in 1..16 {
        desk.event("a", took(index, 5));
    }
    let begun = desk.states().iter().filter(|state| **state != TaskState::Queued).count();
    assert_eq!(begun, 17, "the last ones are for whoever is free");
    let others: [fn(Step) -> Step; 3] = [
        |step| Step { batch: Some(9), ..step },
        |step| Step { max_failures: Some(1), ..step },
        |step| Step { inputs: step.inputs.map(|inputs| inputs[..5].to_vec()), ..step },
    ];
    for adjust in others {
        let mut desk = ahead(20, adjust);
        desk.event("a", took(0, 5));
        assert_eq!(desk.offered().len(), 2, "one after the other");
    }
    let mut desk = ahead(20, |step| step);
    desk.event("a", took(0, 5_000));
    assert_eq!(desk.offered().len(), 2, "long ones");
}

#[test]
fn nothing_is_offered_ahead_of_a_task_that_waits_for_a_slot() {
    let mut desk = ahead(50, |step| step);
    desk.event("a", took(0, 5));
    assert_eq!(desk.offered().len(), 5);
    desk.handle(TaskInput::Submit(JobId(2), spec(vec![step(&["a"], None)])));
    for index in 1..6 {
        desk.event("a", took(index, 5));
    }
    assert!(desk.offered().iter().any(|(name, index, attempt)| (name.as_str(), *index, *attempt) == ("a", 0, 1)));
}

#[test]
fn what_waited_in_vain_goes_elsewhere_and_costs_no_retry() {
    let mut desk = ahead(20, |step| step);
    desk.event("a", took(0, 5));
    desk.offered();
    desk.event("a", rejected(2, 1, RejectReason::Waited));
    assert_eq!(desk.state(2), TaskState::Queued);
    assert_eq!(desk.offered(), [], "it is crowded");
    desk.event("a", took(1, 5));
    assert!(!desk.offered().is_empty());
}

/// A slave that says so of what it has slots for would be offered it again at once, for ever.
#[test]
fn what_waited_in_vain_in_a_free_slot_was_declined() {
    let mut desk = ahead(20, |step| step);
    desk.offered();
    desk.event("a", rejected(0, 1, RejectReason::Waited));
    assert_eq!(desk.state(0), TaskState::Backoff);
}

#[test]
fn whatever_a_slave_says_of_its_time_is_taken_calmly() {
    let mut desk = ahead(20, |step| step);
    for index in 0..3 {
        desk.event("a", took(index, u64::MAX));
    }
    assert_eq!(desk.states()[..3], [TaskState::Succeeded; 3]);
}

/// Its slave has lost power before the end that it had told was durable there.
#[test]
fn what_contradicts_a_recorded_end_is_acknowledged_and_changes_nothing() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![Step { retries: 5, idempotent: true, ..step(&["a"], None) }]);
    desk.event("a", finished(0, 1, Outcome::Succeeded));
    desk.down("a");
    desk.up("a", "s2", 1);
    desk.acknowledged();
    desk.journal("a", "s2", vec![finished(0, 1, Outcome::Lost)]);
    assert_eq!(desk.state(0), TaskState::Succeeded);
    assert_eq!(desk.acknowledged().len(), 1, "so that the slave forgets it");
    assert!(!desk.effects.iter().any(|effect| matches!(effect, TaskEffect::LateResult(_))), "it is known already");
    assert!(desk.offered().iter().all(|(_, _, attempt)| *attempt == 1));
}

#[test]
fn silence_alone_loses_nothing_and_the_end_of_the_lease_does() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.ready("b", 1);
    desk.submit(vec![Step { retries: 1, idempotent: true, ..step(&["a", "b"], Some(&["x"])) }, step(&["a"], None)]);
    let first = desk.offered();
    let (holder, other) =
        if first.iter().any(|(name, index, _)| name == "a" && *index == 0) { ("a", "b") } else { ("b", "a") };
    desk.event(holder, started(0, 1));
    desk.down(holder);
    assert_eq!(desk.state(0), TaskState::Unknown);
    desk.pass(LEASE - Duration::from_secs(1));
    desk.down(other);
    assert_eq!(desk.state(0), TaskState::Unknown);
    desk.pass(master_lease(LEASE) - LEASE + Duration::from_secs(1));
    assert_eq!(desk.state(0), TaskState::Backoff, "idempotent: it may run again");
    desk.offered();
    desk.pass(RETRY_WAIT_MIN);
    desk.up(other, "s2", 2);
    desk.journal(other, "s2", Vec::new());
    assert!(desk.offered().contains(&(other.to_owned(), 0, 2)), "elsewhere");
}
