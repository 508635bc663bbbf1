//! Passwords of people, which can be guessed: hashed slowly, away from the threads on which clients are served, and with
//! a bound on how many are tried at once.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

use super::record::{Account, Hash, Name, PasswordHash};
use super::registry::limits::ACCOUNTS_MAX;

/// The cost of a guess: the weaker of OWASP's recommendations, 19 MiB and 2 passes on one core, is about 0.1 s on a Pi 4,
/// and leaves a Pi with 512 MB its memory.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// How many passwords may wait for their turn, one from each address. Beyond that the answer is "busy": a queue would only
/// make the guesses of a flood slow for those who know theirs.
const WAITING_MAX: usize = 8;

/// The shortest password in bytes that is taken for an account.
pub(crate) const PASSWORD_BYTES_MIN: usize = 8;

/// The longest.
pub(crate) const PASSWORD_BYTES_MAX: usize = 1_024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Passwords {
    /// One at a time.
    turn: Arc<Semaphore>,
    /// Where those come from that are tried or wait.
    addresses: Arc<Mutex<HashSet<IpAddr>>>,
    /// Of each account the password, with its salt, that was found right last: who reconnects is let in at once. Whoever
    /// reads our memory reads passwords as they come in anyway.
    right: Mutex<HashMap<Name, Hash>>,
}

/// Too many passwords wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy;

/// A place among those that wait, given back when it is dropped.
struct Place {
    addresses: Arc<Mutex<HashSet<IpAddr>>>,
    address: IpAddr,
}

impl Passwords {
    pub(crate) fn new() -> Passwords {
        Passwords { turn: Arc::new(Semaphore::new(1)), addresses: Arc::default(), right: Mutex::default() }
    }

    /// The hash of a new account's password; nothing if the system gives no random numbers for it.
    pub(crate) async fn hash(&self, password: String) -> Option<PasswordHash> {
        let turn = self.turn.clone().acquire_owned().await.ok()?;
        let hashing = tokio::task::spawn_blocking(move || {
            let hash: Result<phc::PasswordHash, _> = argon2()?.hash_password(password.as_bytes());
            drop(turn);
            Some(PasswordHash::new(&hash.ok()?.to_string()))
        });
        hashing.await.ok()?
    }

    /// Whether this is the account's password. Without an account it never is, which takes as long to find out.
    pub(crate) async fn verify(
        &self,
        account: Option<&Account>,
        password: &[u8],
        address: IpAddr,
    ) -> Result<bool, Busy> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        let salted = account.map(|account| (&account.name, salted(&account.password, password)));
        if let Some((name, salted)) = &salted
            && lock(&self.right).get(*name) == Some(salted)
        {
            return Ok(true);
        }
        let place = Place::take(&self.addresses, address).ok_or(Busy)?;
        let turn = self.turn.clone().acquire_owned().await.map_err(|_| Busy)?;
        let hash = account.map_or_else(nobodys, |account| account.password.clone());
        let password = password.to_vec();
        // Place and turn go with it: it cannot be called off when the client leaves.
        let verifying = tokio::task::spawn_blocking(move || {
            let is_right = is_right(&hash, &password);
            drop((turn, place));
            is_right
        });
        let is_right = verifying.await.unwrap_or(false);
        match salted {
            Some((name, salted)) if is_right => {
                self.remember(name, salted);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn remember(&self, name: &Name, salted: Hash) {
        let mut right = lock(&self.right);
        // Names of accounts that were removed may have filled it.
        if right.len() >= ACCOUNTS_MAX && !right.contains_key(name) {
            right.clear();
        }
        right.insert(name.clone(), salted);
    }
}

impl Place {
    fn take(addresses: &Arc<Mutex<HashSet<IpAddr>>>, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut taken = lock(addresses);
        // One is tried, the others wait.
        let has_room = taken.len() <= WAITING_MAX;
        (has_room && taken.insert(address)).then(|| Place { addresses: addresses.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.addresses).remove(&self.address);
    }
}

/// An address as one asker: of IPv6 everybody has a network of 64 bits to choose from.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

fn argon2() -> Option<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).ok()?;
    Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn is_right(hash: &PasswordHash, password: &[u8]) -> bool {
    // Its own parameters count, so that hashes of earlier versions stay good.
    let hash = phc::PasswordHash::new(hash.as_str());
    hash.is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

/// What a password is compared with if there is no account: of the same cost, and of no password known to anybody.
fn nobodys() -> PasswordHash {
    let (salt, hash) = ("A".repeat(22), "A".repeat(43));
    PasswordHash::new(&format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${salt}${hash}"))
}

/// The hash holds the salt, and is another one when the password is.
fn salted(hash: &PasswordHash, password: &[u8]) -> Hash {
    Hash::of(&[hash.as_str().as_bytes(), b"\0", password].concat())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::record::Role;
    use super::*;

    const HERE: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    async fn account(passwords: &Passwords, name: &str, password: &str) -> Account {
        let password = passwords.hash(password.to_owned()).await.unwrap();
        Account {
            name: name.parse().unwrap(),
            role: Role::Observer,
            password,
            publish: Vec::new(),
            subscribe: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_right_password_is_found_right_and_remembered_until_it_changes() {
        let passwords = Passwords::new();
        let home = account(&passwords, "home", "correct horse").await;
        assert!(home.password.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", home.password.as_str());
        assert_eq!(passwords.verify(Some(&home), b"correct house", HERE).await, Ok(false));
        assert!(lock(&passwords.right).is_empty());
        assert_eq!(passwords.verify(Some(&home), b"correct horse", HERE).await, Ok(true));

        // Nobody gets a turn any more: only what is remembered is let in.
        let _turn = passwords.turn.clone().acquire_owned().await.unwrap();
        assert_eq!(passwords.verify(Some(&home), b"correct horse", HERE).await, Ok(true));
        let changed = Account { password: PasswordHash::new("$argon2id$other"), ..home };
        let mut asking = std::pin::pin!(passwords.verify(Some(&changed), b"correct horse", HERE));
        assert!(is_pending(asking.as_mut()).await, "another hash is tried anew");
    }

    /// Whether a future waits after it was polled once.
    async fn is_pending<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
        std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
    }

    #[tokio::test]
    async fn nobodys_password_costs_as_much_and_is_never_right() {
        let hash = nobodys();
        let parsed = phc::PasswordHash::new(hash.as_str()).unwrap();
        let ours = Params::try_from(&parsed).unwrap();
        assert_eq!((ours.m_cost(), ours.t_cost(), ours.p_cost()), (MEMORY_KIB, PASSES, LANES));
        assert_eq!((parsed.salt.unwrap().len(), parsed.hash.unwrap().len()), (16, 32));
        assert_eq!(Passwords::new().verify(None, b"correct horse", HERE).await, Ok(false));
    }

    #[tokio::test]
    async fn a_flood_of_passwords_is_turned_away_and_one_address_has_one_place() {
        let passwords = Passwords::new();
        let turn = passwords.turn.clone().acquire_owned().await.unwrap();
        let mut waiting = Vec::new();
        for number in 0..=WAITING_MAX as u8 {
            let mut asking = Box::pin(passwords.verify(None, b"guess", [10, 0, 0, number].into()));
            assert!(is_pending(asking.as_mut()).await);
            assert_eq!(passwords.verify(None, b"guess", [10, 0, 0, number].into()).await, Err(Busy));
            waiting.push(asking);
        }
        assert_eq!(passwords.verify(None, b"guess", [10, 0, 1, 0].into()).await, Err(Busy));
        drop(waiting.pop());
        let mut asking = Box::pin(passwords.verify(None, b"guess", "2001:db8::1".parse().unwrap()));
        assert!(is_pending(asking.as_mut()).await, "who leaves makes room");
        drop(waiting.pop());
        assert_eq!(passwords.verify(None, b"guess", "2001:db8::2".parse().unwrap()).await, Err(Busy), "one network");
        drop(turn);
        assert_eq!(waiting.remove(0).await, Ok(false), "the first has its turn first");
    }
}
