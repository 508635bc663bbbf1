//! Against guessing: after some wrong passwords from an address, each further answer "no" comes later than the one before.
//!
//! Only refusals wait. Who knows his password is let in at once, also from an address that somebody guesses from: a whole
//! cluster may stand behind one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::places::network;

/// So many wrong passwords are taken for slips of the hand.
const FREE: u32 = 3;
/// How long the first answer after those waits; each one after it, twice as long as the one before.
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// The longest that an answer waits.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// After so long without a wrong password an address starts anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10 * 60);
/// Addresses remembered; when there are more, all wait as if they had guessed for long.
const ADDRESSES_MAX: usize = 10_000;

/// Who guessed how often.
#[derive(Debug, Default)]
pub(crate) struct Guesses(Mutex<HashMap<IpAddr, Wrong>>);

#[derive(Debug)]
struct Wrong {
    count: u32,
    last: Instant,
}

impl Guesses {
    /// Notes a wrong password from this address; how long the answer to it must wait.
    pub(crate) fn wrong(&self, address: IpAddr, now: Instant) -> Duration {
        let address = network(address);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |wrong: &Wrong| now.saturating_duration_since(wrong.last) < FORGIVEN_AFTER;
        if all.len() >= ADDRESSES_MAX && !all.contains_key(&address) {
            all.retain(|_, wrong| fresh(wrong));
            if all.len() >= ADDRESSES_MAX {
                return DELAY_MAX;
            }
        }
        let wrong = all.entry(address).or_insert(Wrong { count: 0, last: now });
        if !fresh(wrong) {
            wrong.count = 0;
        }
        wrong.count = wrong.count.saturating_add(1);
        wrong.last = now;
        match wrong.count.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(doublings) => DELAY_FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(DELAY_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn refusals_come_later_and_later_until_the_guessing_stops() {
        let guesses = Guesses::default();
        let now = Instant::now();
        let waits: Vec<u128> = (0..12).map(|_| guesses.wrong([10, 0, 0, 1].into(), now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(guesses.wrong([10, 0, 0, 2].into(), now), Duration::ZERO, "another address");
        assert_eq!(guesses.wrong([10, 0, 0, 1].into(), now + FORGIVEN_AFTER), Duration::ZERO);
    }

    #[test]
    fn a_network_of_ipv6_is_one_guesser_and_so_is_an_address_written_in_two_ways() {
        let guesses = Guesses::default();
        let now = Instant::now();
        for host in 0..4_u16 {
            guesses.wrong(Ipv6Addr::new(0x2001, 0xdb8, 0, 7, 0, 0, 0, host).into(), now);
        }
        assert!(!guesses.wrong("2001:db8:0:7::9".parse().unwrap(), now).is_zero());
        assert!(guesses.wrong("2001:db8:0:8::9".parse().unwrap(), now).is_zero());
        for _ in 0..4 {
            guesses.wrong("10.0.0.9".parse().unwrap(), now);
        }
        assert!(!guesses.wrong("::ffff:10.0.0.9".parse().unwrap(), now).is_zero());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let guesses = Guesses::default();
        let now = Instant::now();
        for number in 0..ADDRESSES_MAX as u32 {
            guesses.wrong(std::net::Ipv4Addr::from_bits(number).into(), now);
        }
        assert_eq!(guesses.wrong([255, 0, 0, 1].into(), now), DELAY_MAX);
        assert_eq!(guesses.wrong([255, 0, 0, 1].into(), now + FORGIVEN_AFTER), Duration::ZERO);
    }
}
