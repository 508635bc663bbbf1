//! What the scheduler promises when things go wrong that the simulator does not play: commands that get lost, a master
//! that was away, slaves that are silent for a while, drained or removed.

use rpicluster_protocol::limits::{KILL_GRACE, RETRY_WAIT_MAX};

use super::*;
use crate::journal::{Effect, Input, Journal, Verdict};

/// A queue of so many tasks.
fn counted(slaves: &[&str], count: u32) -> Step {
    Step { inputs: Some((0..count).map(|input| input.to_string()).collect()), ..step(slaves, None) }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The longest that the master waits.
fn lease_over() -> Duration {
    LEASE + KILL_GRACE + LEASE / 20
}

#[test]
fn an_offer_that_is_made_again_ends_no_later_than_the_first() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![Step { idempotent: true, retries: 1, ..counted(&["a", "b"], 1) }]);
    let first = desk.now;
    desk.pass(lease_over() - seconds(1));
    assert!(desk.offers.len() > 5, "{:?}", desk.offers.len());
    for (at, _, offer) in &desk.offers {
        assert_eq!(offer.key.attempt, 1);
        let ends = *at + Duration::from_millis(offer.lease_ms);
        assert!(ends <= first + LEASE, "offered at {at:?}, it could run until {ends:?}: the master gives it up before");
        assert!(offer.lease_ms > 0);
    }
}

#[test]
fn what_may_run_on_a_removed_slave_begins_elsewhere_only_when_its_lease_is_over() {
    for restarts in [false, true] {
        let mut desk = Desk::new();
        desk.ready("a", 1);
        desk.submit(vec![Step { idempotent: true, retries: 1, ..counted(&["a", "b"], 1) }]);
        desk.event("a", started(0, 1));
        desk.handle(TaskInput::SlaveRemoved(slave("a")));
        if restarts {
            desk.restart();
        }
        desk.ready("b", 1);
        desk.offered();
        desk.pass(lease_over() - seconds(1));
        assert_eq!(desk.offered(), [], "restarts: {restarts}");
        desk.pass(RETRY_WAIT_MAX);
        assert_eq!(desk.offered().first(), Some(&("b".to_owned(), 0, 2)), "restarts: {restarts}");
    }
}

#[test]
fn a_slave_that_was_removed_and_joins_again_finds_what_waits() {
    let mut desk = Desk::new();
    desk.ready("b", 0);
    desk.submit(vec![counted(&["a", "b"], 1)]);
    desk.ready("a", 0);
    desk.handle(TaskInput::SlaveRemoved(slave("a")));
    desk.handle(TaskInput::Undrain(slave("a")));
    desk.ready("a", 1);
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 1)]);
}

#[test]
fn a_master_that_was_away_gives_nothing_up_for_it() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.event("a", started(0, 1));
    desk.now += lease_over() * 2;
    desk.handle(TaskInput::Paused(lease_over() * 2));
    desk.timeout();
    assert_eq!(desk.state(0), TaskState::Running);
    desk.pass(lease_over());
    assert_eq!(desk.state(0), TaskState::Lost);
}

#[test]
fn a_slave_that_was_silent_goes_on_in_its_session_without_a_new_journal() {
    let mut desk = Desk::new();
    desk.ready("a", 3);
    desk.submit(vec![counted(&["a"], 4)]);
    desk.event("a", started(0, 1));
    desk.down("a");
    assert_eq!([0, 1].map(|index| desk.state(index)), [TaskState::Unknown; 2]);
    desk.offered();
    desk.up("a", "s1", 3);
    assert_eq!([0, 1].map(|index| desk.state(index)), [TaskState::Running, TaskState::Offered]);
    desk.event("a", ended(0, 1, 2, Outcome::Succeeded));
    assert_eq!(desk.offered(), [("a".to_owned(), 3, 1)]);
    desk.pass(RESEND_MIN * 2);
    assert!(desk.offered().contains(&("a".to_owned(), 1, 1)), "what it does not answer is said again");
}

#[test]
fn an_offer_of_a_session_that_outlives_the_master_is_made_again_and_not_elsewhere() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![counted(&["a", "b"], 1)]);
    desk.restart();
    desk.offered();
    // A broker that others run has kept the session, and the offer may still be on its way in it.
    desk.ready("b", 1);
    desk.ready("a", 1);
    desk.pass(RESEND_MIN);
    assert!(desk.offered().iter().all(|offer| *offer == ("a".to_owned(), 0, 1)));
    desk.event("a", started(0, 1));
    assert_eq!(desk.state(0), TaskState::Running);
}

#[test]
fn a_drain_takes_back_what_has_not_begun() {
    let mut desk = Desk::new();
    desk.ready("a", 3);
    desk.submit(vec![counted(&["a", "b"], 3)]);
    desk.event("a", started(0, 1));
    desk.offered();
    desk.handle(TaskInput::Drain(slave("a"), "repair".to_owned(), None));
    assert_eq!(desk.cancels, [key(1, 1), key(2, 1)]);
    desk.event("a", ended(1, 1, 1, Outcome::Canceled));
    assert_eq!((desk.state(1), desk.late.as_slice()), (TaskState::Queued, &[key(1, 1)][..]));
    desk.pass(RESEND_MIN);
    assert_eq!(desk.cancels[2..], [key(2, 1)], "an unanswered cancel is said again, and no offer");
    assert_eq!(desk.offered(), []);
    // The journal of a later session tells that it never began: nobody else needs to wait.
    desk.up("a", "s2", 3);
    desk.journal("a", "s2", vec![started(0, 1)]);
    assert_eq!([0, 1, 2].map(|index| desk.state(index)), [TaskState::Running, TaskState::Queued, TaskState::Queued]);
    desk.ready("b", 3);
    let mut offered = desk.offered();
    offered.sort();
    assert_eq!(offered, [("b".to_owned(), 1, 2), ("b".to_owned(), 2, 2)]);
}

#[test]
fn what_is_taken_back_as_it_is_about_to_begin_never_began() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![counted(&["a", "b"], 1)]);
    desk.handle(TaskInput::Drain(slave("a"), "repair".to_owned(), None));
    let (mut journal, mut effects) = (Journal::new(1, None), Vec::new());
    let (_, _, offer) = desk.offers.remove(0);
    let inputs = [
        Input::SessionBegan(session("s1")),
        Input::Offer { offer: Box::new(offer), verdict: Verdict::Run },
        Input::Cancel(TaskCancel { key: desk.cancels[0] }),
        Input::Synced { records: 2 },
    ];
    inputs.into_iter().for_each(|input| journal.handle(Moment::from(desk.now), input, &mut effects));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Spawn { .. })));
    for effect in effects {
        if let Effect::Tell(entry) = effect {
            desk.event("a", entry);
        }
    }
    assert_eq!(desk.state(0), TaskState::Queued);
}

#[test]
fn what_was_offered_before_a_restart_and_a_drain_is_taken_back_too() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![counted(&["a", "b"], 1)]);
    desk.handle(TaskInput::Drain(slave("a"), "repair".to_owned(), None));
    desk.restart();
    (desk.offers, desk.cancels) = (Vec::new(), Vec::new());
    desk.ready("a", 1);
    assert_eq!((desk.cancels.clone(), desk.offered()), (vec![key(0, 1)], vec![]));
    desk.event("a", ended(0, 1, 1, Outcome::Canceled));
    desk.ready("b", 1);
    assert_eq!(desk.offered(), [("b".to_owned(), 0, 2)]);
}

#[test]
fn the_deadline_of_a_drain_outlives_the_master() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.event("a", started(0, 1));
    desk.handle(TaskInput::Drain(slave("a"), "repair".to_owned(), Some(seconds(60))));
    desk.pass(seconds(20));
    desk.restart();
    desk.up("a", "s2", 1);
    desk.journal("a", "s2", vec![started(0, 1)]);
    desk.pass(seconds(39));
    assert_eq!(desk.cancels, []);
    desk.pass(seconds(1));
    assert_eq!(desk.cancels, [key(0, 1)]);
}

#[test]
fn a_journal_that_does_not_come_is_asked_for_again_and_again() {
    let mut desk = Desk::new();
    desk.submit(vec![step(&["a"], None)]);
    desk.up("a", "s1", 1);
    desk.pass(RESEND_MIN * 3);
    assert_eq!(desk.announces, [seconds(1) + RESEND_MIN, seconds(1) + RESEND_MIN * 3]);
    desk.down("a");
    desk.pass(RESEND_MAX);
    assert_eq!(desk.announces.len(), 2, "nobody is there who could answer");
    desk.up("a", "s2", 1);
    desk.pass(RESEND_MIN);
    assert_eq!(desk.announces.len(), 3);
    desk.journal("a", "s2", Vec::new());
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 1)]);
    desk.pass(RESEND_MAX * 2);
    assert_eq!(desk.announces.len(), 3);
}

#[test]
fn waiting_is_for_slaves_that_are_away_and_counts_from_when_they_went() {
    let mut desk = Desk::new();
    let wait = seconds(60);
    desk.ready("a", 1);
    desk.submit(vec![Step { wait_ms: Some(60_000), ..counted(&["a"], 3) }]);
    desk.event("a", started(0, 1));
    // Long after the submission, but not long after it went away.
    desk.pass(wait * 5);
    desk.down("a");
    desk.pass(wait - seconds(1));
    assert_eq!(desk.state(1), TaskState::Queued);
    desk.up("a", "s2", 1);
    desk.journal("a", "s2", vec![started(0, 1)]);
    desk.pass(wait * 2);
    assert_eq!(desk.state(1), TaskState::Queued);
    desk.down("a");
    desk.pass(wait);
    assert_eq!([1, 2].map(|index| desk.state(index)), [TaskState::Expired; 2]);
}

#[test]
fn who_is_away_is_not_waited_for_after_a_failure_or_an_earlier_step_either() {
    let mut desk = Desk::new();
    let waits = |step: Step| Step { wait_ms: Some(60_000), ..step };
    desk.ready("a", 1);
    let after = Step { after: vec![0], ..waits(step(&["b"], None)) };
    desk.submit(vec![Step { retries: 1, ..waits(step(&["a"], None)) }, after]);
    desk.event("a", ended(0, 1, 2, Outcome::Failed));
    desk.down("a");
    desk.pass(seconds(120));
    assert_eq!([0, 1].map(|index| desk.state(index)), [TaskState::Expired, TaskState::Canceled]);
    desk.handle(TaskInput::RetryJob(JOB, false));
    desk.up("a", "s2", 1);
    desk.journal("a", "s2", Vec::new());
    desk.pass(seconds(50));
    desk.event("a", ended(0, 2, 2, Outcome::Succeeded));
    desk.pass(seconds(50));
    assert_eq!(desk.state(1), TaskState::Queued, "it could not begin before the step before had ended");
    desk.pass(seconds(60));
    assert_eq!(desk.state(1), TaskState::Expired);
}

#[test]
fn a_slave_that_is_always_busy_is_asked_ever_more_seldom_and_not_for_ever() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    let mut attempts = Vec::new();
    while desk.state(0) != TaskState::Rejected {
        for (_, _, attempt) in desk.offered() {
            attempts.push(desk.now);
            desk.event("a", rejected(0, attempt, RejectReason::Busy));
        }
        assert!(attempts.len() < 200, "it never ends");
        desk.pass(seconds(1));
    }
    assert!(attempts.len() >= 20, "{}", attempts.len());
    let waits: Vec<Duration> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[0] <= seconds(2) && *waits.last().unwrap() >= RESEND_MAX / 2, "{waits:?}");
}

#[test]
fn nothing_is_offered_beside_what_boots_the_machine() {
    let mut desk = Desk::new();
    desk.ready("a", 4);
    let mut reboot = step(&["a"], None);
    reboot.spec.work = Work::Action { action: Action::Reboot };
    desk.submit(vec![reboot, counted(&["a"], 4)]);
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 1)]);
    desk.restart();
    desk.up("a", "s2", 4);
    desk.journal("a", "s2", vec![started(0, 1)]);
    assert_eq!(desk.offered(), []);
    desk.event("a", ended(0, 1, 2, Outcome::Succeeded));
    assert_eq!(desk.offered().len(), 4);
}

#[test]
fn a_late_result_that_makes_another_of_an_ended_job_is_written() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.event("a", started(0, 1));
    desk.pass(lease_over());
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Failed);
    desk.jobs.clear();
    desk.event("a", ended(0, 1, 2, Outcome::Succeeded));
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Succeeded);
    assert!(desk.jobs.contains_key(&JOB), "its record was not written again");
}

#[test]
fn what_was_given_up_is_ended_and_its_beginning_not_acknowledged() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.event("a", started(0, 1));
    desk.pass(lease_over());
    (desk.acks, desk.cancels) = (Vec::new(), Vec::new());
    // If the slave does not know it either, its end will have this number.
    desk.event("a", started(0, 1));
    assert_eq!((desk.cancels.as_slice(), desk.acks.len()), (&[key(0, 1)][..], 0));
    desk.event("a", ended(0, 1, 1, Outcome::Canceled));
    assert_eq!((desk.state(0), desk.acks.len()), (TaskState::Canceled, 1));
}

#[test]
fn ended_jobs_leave_nothing_behind() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![Step { wait_ms: Some(3_600_000), ..counted(&["a"], 2) }]);
    desk.event("a", ended(0, 1, 2, Outcome::Succeeded));
    desk.event("a", ended(1, 1, 2, Outcome::Succeeded));
    desk.tasks.forget_ended();
    assert_eq!((desk.tasks.job(JOB), desk.tasks.poll_timeout()), (None, None));
    // One that is read again for a retry in vain.
    desk.restart();
    desk.handle(TaskInput::RetryJob(JOB, false));
    desk.tasks.forget_ended();
    assert_eq!(desk.tasks.job(JOB), None);
}

#[test]
fn a_job_without_tasks_has_succeeded() {
    let mut desk = Desk::new();
    desk.submit(vec![step(&[], None)]);
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Succeeded);
    assert!(desk.jobs[&JOB].ended.is_some());
}

#[test]
fn a_batch_that_a_thousand_slaves_wait_for_comes_to_its_end() {
    let mut desk = Desk::new();
    let names: Vec<String> = (0..1_000).map(|number| format!("pi{number:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.iter().for_each(|name| desk.ready(name, 1));
    desk.submit(vec![Step { batch: Some(2), ..counted(&names, 5_000) }]);
    let mut done = 0;
    loop {
        let offered = desk.offered();
        if offered.is_empty() {
            break;
        }
        for (holder, index, attempt) in offered {
            desk.event(&holder, ended(index, attempt, 2, Outcome::Succeeded));
            done += 1;
        }
    }
    assert_eq!((done, desk.tasks.job_state(JOB).unwrap().0), (5_000, JobState::Succeeded));
}
