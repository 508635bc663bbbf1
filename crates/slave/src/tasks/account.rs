//! Users and groups as `/etc/passwd` and `/etc/group` tell. Those of a directory service are unknown here.

use std::fs;

use rustix::process::geteuid;

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

impl Account {
    /// The one of that name.
    pub(crate) fn named(name: &str) -> Option<Account> {
        find(&read("/etc/passwd"), |account| account.name == name)
    }

    /// The one under whom this process runs.
    pub(crate) fn own() -> Account {
        let uid = geteuid().as_raw();
        find(&read("/etc/passwd"), |account| account.uid == uid).unwrap_or_else(|| Account {
            name: uid.to_string(),
            uid,
            gid: rustix::process::getegid().as_raw(),
            home: "/".to_owned(),
        })
    }

    /// The groups that it belongs to, its own first.
    pub(crate) fn groups(&self) -> Vec<u32> {
        groups_of(&read("/etc/group"), self)
    }
}

fn read(path: &str) -> String {
    // Without the file nobody is known.
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn find(passwd: &str, is_wanted: impl Fn(&Account) -> bool) -> Option<Account> {
    let accounts = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid, home: fields.nth(1)?.to_owned() })
    });
    accounts.into_iter().find(is_wanted)
}

fn groups_of(group: &str, account: &Account) -> Vec<u32> {
    let others = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        let is_member = fields.next()?.split(',').any(|member| member == account.name);
        (is_member && gid != account.gid).then_some(gid)
    });
    std::iter::once(account.gid).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_their_groups_are_read_as_the_system_writes_them() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\npi:x:1000:1001:,,,:/home/pi:/bin/sh\n";
        let pi = find(passwd, |account| account.name == "pi").unwrap();
        assert_eq!((pi.uid, pi.gid, pi.home.as_str()), (1000, 1001, "/home/pi"));
        assert_eq!(find(passwd, |account| account.name == "p"), None);
        assert_eq!(groups_of("gpio:x:997:pi,ana\nvideo:x:44:ana\npi:x:1001:pi\naudio:x:29:pi\n", &pi), [1001, 997, 29]);
    }
}
