//! How many connections there may be, in total and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Limits;

/// Who holds how many connections.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, OfAddress>,
}

#[derive(Debug, Default)]
struct OfAddress {
    open: usize,
    /// Those among them that have not been let in yet.
    pending: usize,
}

/// A connection's place, given back when it is dropped. Pending until it is [let in](Place::settle).
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    peer: IpAddr,
    pending: bool,
}

impl Places {
    /// A place for a connection from `peer`, if the limits leave one.
    pub(crate) fn take(self: &Arc<Self>, peer: IpAddr, limits: &Limits) -> Option<Place> {
        let peer = network(peer);
        let mut taken = self.lock();
        if taken.total >= limits.connections {
            return None;
        }
        let of_address = taken.by_address.entry(peer).or_default();
        if of_address.open >= limits.connections_per_address || of_address.pending >= limits.pending_per_address {
            return None;
        }
        of_address.open += 1;
        of_address.pending += 1;
        taken.total += 1;
        Some(Place { places: Arc::clone(self), peer, pending: true })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The client was let in.
    pub(crate) fn settle(&mut self) {
        if std::mem::take(&mut self.pending)
            && let Some(of_address) = self.places.lock().by_address.get_mut(&self.peer)
        {
            of_address.pending -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.settle();
        let mut taken = self.places.lock();
        taken.total -= 1;
        if let Some(of_address) = taken.by_address.get_mut(&self.peer) {
            of_address.open -= 1;
            if of_address.open == 0 {
                taken.by_address.remove(&self.peer);
            }
        }
    }
}

/// Who has one IPv6 address has 2^64 of them.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_in_total_by_address_and_before_a_client_is_let_in() {
        let limits = Limits { connections: 4, connections_per_address: 3, pending_per_address: 2, ..Limits::default() };
        let (a, b) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let places = Arc::new(Places::default());
        let take = |peer| places.take(peer, &limits);
        let mut first = take(a).unwrap();
        let _second = take(a).unwrap();
        assert!(take(a).is_none(), "two of this address are pending");
        first.settle();
        let mut third = take(a).unwrap();
        third.settle();
        assert!(take(a).is_none(), "three of this address are open");
        let _fourth = take(b).unwrap();
        assert!(take(b).is_none(), "four are open");
        drop(first);
        assert!(take(b).is_some());
        drop((third, _second, _fourth));
        assert!(places.lock().by_address.is_empty());
    }
}
