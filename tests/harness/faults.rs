//! Full disks, and networks that fail: two namespaces joined by a veth pair, between which packets are dropped, lost or refused.
//!
//! Traffic stays inside the namespaces. They vanish with the test; those of killed test runs at the next start.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How the names of namespaces and disks begin; process id, number and end follow.
const PREFIX: &str = "rpicluster-test";

/// What killed test runs have left is removed once.
static LEFTOVERS: Once = Once::new();

/// Where the system lists namespaces.
const NAMESPACES: &str = "/run/netns";

/// Where something runs: in this machine's network or in a namespace of its own.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// With the test.
    Here,
    /// In the network namespace of that name.
    Namespace(String),
}

/// A head and a node, with a cable between them.
pub(crate) struct Network {
    head: String,
    node: String,
}

/// A fault that lasts until it is dropped.
pub(crate) struct Fault<'a> {
    network: &'a Network,
    rules: Vec<Vec<&'static str>>,
}

impl Place {
    /// A command that runs there.
    pub(crate) fn command(&self, program: &str) -> Command {
        match self {
            Place::Here => Command::new(program),
            Place::Namespace(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, program]);
                command
            }
        }
    }

    /// Does `work` there: sockets that it opens belong to that network.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let Place::Namespace(name) = self else { return work() };
        let namespace = File::open(Path::new(NAMESPACES).join(name)).unwrap();
        // A thread of its own, because a namespace is entered by a thread, for the rest of its life.
        let inside = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap()
    }
}

impl Network {
    /// The address of the head's end.
    pub(crate) const HEAD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1));

    /// Two namespaces with a working cable.
    pub(crate) fn new() -> Network {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "tests with network faults need root (network namespaces, iptables): run them as root, as CI does"
        );
        LEFTOVERS.call_once(remove_leftovers);
        let name = format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let network = Network { head: format!("{name}-head"), node: format!("{name}-node") };
        let (head, node) = (network.head.as_str(), network.node.as_str());
        ip(&["netns", "add", head]);
        ip(&["netns", "add", node]);
        ip(&["-n", head, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", node]);
        for (namespace, address) in [(head, "10.77.0.1/24"), (node, "10.77.0.2/24")] {
            ip(&["-n", namespace, "address", "add", address, "dev", "cable"]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
            ip(&["-n", namespace, "link", "set", "cable", "up"]);
        }
        network
    }

    /// Where the master belongs.
    pub(crate) fn head(&self) -> Place {
        Place::Namespace(self.head.clone())
    }

    /// Where the slave belongs.
    pub(crate) fn node(&self) -> Place {
        Place::Namespace(self.node.clone())
    }

    /// Nothing passes in either direction, and nobody is told.
    pub(crate) fn cut(&self) -> Fault<'_> {
        self.fault(vec![vec!["INPUT", "-i", "cable", "-j", "DROP"], vec!["OUTPUT", "-o", "cable", "-j", "DROP"]])
    }

    /// Nothing reaches the head, while the node still hears it: a half-open network.
    pub(crate) fn deafen_head(&self) -> Fault<'_> {
        self.fault(vec![vec!["INPUT", "-i", "cable", "-j", "DROP"]])
    }

    /// A third of all packets is lost in each direction.
    pub(crate) fn lose_a_third(&self) -> Fault<'_> {
        let random = ["-m", "statistic", "--mode", "random", "--probability", "0.33", "-j", "DROP"];
        let rule = |chain: [&'static str; 3]| chain.into_iter().chain(random).collect();
        self.fault(vec![rule(["INPUT", "-i", "cable"]), rule(["OUTPUT", "-o", "cable"])])
    }

    /// What the node sends is answered with a reset; the head hears nothing of it.
    pub(crate) fn reset(&self) -> Fault<'_> {
        self.fault(vec![vec!["INPUT", "-i", "cable", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"]])
    }

    fn fault(&self, rules: Vec<Vec<&'static str>>) -> Fault<'_> {
        for rule in &rules {
            self.iptables("-A", rule);
        }
        Fault { network: self, rules }
    }

    fn iptables(&self, action: &str, rule: &[&str]) {
        let mut command = self.head().command("iptables");
        succeed(command.args(["-w", action]).args(rule));
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        for rule in &self.rules {
            self.network.iptables("-D", rule);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.head, &self.node] {
            remove(namespace);
        }
    }
}

/// Removes namespaces and disks of test processes that are gone.
fn remove_leftovers() {
    let is_left = |name: &str| {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists())
    };
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| is_left(name)).for_each(|name| remove(&name));
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mounts = mounts.lines().filter_map(|line| line.split_once(' '));
    let left = mounts.filter(|(name, _)| is_left(name)).filter_map(|(_, rest)| rest.split(' ').next());
    left.for_each(|folder| unmount(Path::new(folder)));
}

/// Lazily: who still has files open there is about to be stopped by the test.
fn unmount(folder: &Path) {
    // A failure here must not hide the test's own; what is left is removed at the next start.
    let _ = Command::new("umount").arg("--lazy").arg(folder).status();
}

fn remove(namespace: &str) {
    // A failure here must not hide the test's own; what is left is removed at the next start.
    let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
}

/// A disk of its own for a folder, which can be filled. What it holds is gone with it.
pub(crate) struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Room for the state of a master or slave, and not for much more.
    const SIZE: &str = "size=24m,mode=0700";

    /// Puts one under a folder that nobody uses now; what is in it moves there.
    pub(crate) fn under(folder: &Path) -> SmallDisk {
        assert!(
            rustix::process::geteuid().is_root(),
            "tests with full disks need root (mount): run them as root, as CI does"
        );
        LEFTOVERS.call_once(remove_leftovers);
        let aside = folder.with_extension("aside");
        fs::rename(folder, &aside).unwrap();
        fs::create_dir(folder).unwrap();
        let name = format!("{PREFIX}-{}-disk", std::process::id());
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", SmallDisk::SIZE, &name]).arg(folder));
        let disk = SmallDisk { folder: folder.to_owned() };
        succeed(Command::new("cp").arg("-a").arg(aside.join(".")).arg(folder));
        disk
    }

    /// Fills it to the last byte.
    pub(crate) fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        for length in [64 * 1024, 1] {
            let piece = vec![0; length];
            while filler.write_all(&piece).is_ok() {}
        }
    }

    /// Makes room again.
    pub(crate) fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.folder);
    }
}

fn ip(arguments: &[&str]) {
    succeed(Command::new("ip").args(arguments));
}

fn succeed(command: &mut Command) {
    let missing = "the Debian packages iproute2, iptables and mount are needed";
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: {missing}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
