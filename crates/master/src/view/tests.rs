use super::*;

fn id(text: &str) -> SlaveId {
    text.parse().unwrap()
}

fn at(unix_ms: u64) -> Timestamp {
    Timestamp::from_unix_ms(unix_ms)
}

#[test]
fn everybody_is_listed_once_and_no_more_than_allowed() {
    let view = View::new(2);
    let first = view.get_or_meet(&id("a"), at(1)).unwrap();
    assert!(Arc::ptr_eq(&first, &view.get_or_meet(&id("a"), at(2)).unwrap()));
    assert!(view.get_or_meet(&id("b"), at(1)).is_some());
    assert!(view.get_or_meet(&id("c"), at(1)).is_none());
    assert!(view.get_or_meet(&id("a"), at(1)).is_some(), "who is known stays known");
    assert_eq!(first.latest().reason.as_deref(), Some(NO_STATE));
    assert!(view.get("c").is_none());
}

#[test]
fn since_moves_only_when_the_state_turns() {
    let slave = Slave::new(id("a"), Latest::without_state(at(1)));
    assert!(slave.set_presence(Liveness::Online, None, None, at(2)));
    assert!(!slave.set_presence(Liveness::Online, None, None, at(3)), "the same again is no news");
    assert_eq!(slave.latest().since, at(2));
    assert!(slave.set_presence(Liveness::Offline, Some("silent".into()), None, at(4)));
    assert!(!slave.set_presence(Liveness::Offline, Some("connection_lost".into()), None, at(5)));
    assert_eq!(slave.latest().since, at(4));
    assert_eq!(slave.latest().reason.as_deref(), Some("connection_lost"));
}

#[test]
fn a_flood_of_details_is_one_piece_of_news() {
    let slave = Slave::new(id("a"), Latest::without_state(at(1)));
    let details = |cores| Arc::new(Details { cpu_cores: Some(cores), ..Details::default() });
    assert!(slave.set_details(details(1)));
    assert!(!slave.set_details(details(2)), "the engine knows already");
    slave.saving_details();
    assert!(!slave.set_details(details(2)), "nothing new");
    assert!(slave.set_details(details(3)));
}

#[test]
fn a_sign_of_life_is_reported_once_for_each_time_it_is_asked_for() {
    let slave = Slave::new(id("a"), Latest::without_state(at(1)));
    let moment = Moment::from_millis;
    assert!(slave.pulse.beat(moment(10)), "the first message of a slave is news");
    assert!(!slave.pulse.beat(moment(11)));
    assert_eq!(slave.pulse.listen(moment(12)), None);
    assert!(slave.pulse.beat(moment(12)));
    assert!(!slave.pulse.beat(moment(13)));
    assert_eq!(slave.pulse.listen(moment(12)), Some(moment(13)), "what came before the question answers it");
    assert!(!slave.pulse.beat(moment(14)));
    assert_eq!(slave.pulse.heard(), moment(14));
}

#[test]
fn a_removed_slave_comes_back_as_another_after_its_farewell() {
    let view = View::new(2);
    let old = view.get_or_meet(&id("a"), at(1)).unwrap();
    view.remove(&id("a"));
    view.remove(&id("never-seen"));
    assert!(old.is_removed() && view.is_leaving(&id("a")) && view.all().is_empty());
    let mark = Bytes::from_static(b"mark");
    assert!(!view.farewell(&id("a"), &mark), "nobody said what to expect");
    let mut arrival = view.expect_farewell(&id("a"), mark.clone());
    assert!(view.get_or_meet(&id("a"), at(1)).is_none());
    assert!(!view.farewell(&id("a"), &Bytes::from_static(b"forged")) && !view.farewell(&id("b"), &mark));
    assert_eq!(arrival.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    assert!(view.farewell(&id("a"), &mark) && !view.farewell(&id("a"), &mark));
    assert_eq!(arrival.try_recv(), Err(oneshot::error::TryRecvError::Closed), "who waits for it is told");
    let new = view.get_or_meet(&id("a"), at(2)).unwrap();
    assert!(!new.is_removed() && old.is_removed() && view.is_leaving(&id("never-seen")));
}
