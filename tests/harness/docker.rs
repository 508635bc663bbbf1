//! Containers as hosts, on images made here: no registry is reached.
//!
//! All images that tests make carry a label, and are removed with all that came of them. What takes long to make, root file
//! systems of Debian, stays as tar files below `target/images`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Finished, run};

/// What the test's images bear, and so their containers.
const LABEL: &str = "rpicluster.test";

/// The Debian release of the images.
const RELEASE: &str = "bookworm";

/// In the place of the build: hands out the program that this test run has built already.
const CARGO: &str = "#!/bin/sh\n[ \"$1\" = build ] || exit 0\nmkdir -p target/release && cp /usr/local/lib/rpicluster \
                     target/release/\n";

/// One test at a time has the engine.
static TURN: Mutex<()> = Mutex::new(());

/// The Docker engine of this machine while a test uses it. Dropped, it holds again what it held before.
pub(crate) struct Engine {
    /// Names that images of this machine had before.
    taken: Vec<(String, Option<String>)>,
    _turn: MutexGuard<'static, ()>,
}

impl Engine {
    /// `None`, and a line that says so, where no engine runs.
    pub(crate) fn find(test: &str) -> Option<Engine> {
        let found = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
        match found {
            Ok(answer) if answer.status.success() => {
                let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
                remove_all();
                Some(Engine { taken: Vec::new(), _turn: turn })
            }
            _ => {
                skipped(test, "no Docker engine answers here");
                None
            }
        }
    }

    /// Makes the two images that the Dockerfile builds on, under the names that it uses.
    pub(crate) fn base_images(&mut self) {
        let dockerfile = fs::read_to_string(top().join("Dockerfile")).unwrap();
        let mut names = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")?.split(' ').next());
        let (build, base) = (names.next().unwrap(), names.next().unwrap());
        assert!(base.contains(RELEASE) && build.contains(RELEASE), "{base} and {build} are to be {RELEASE}");
        self.debian(base);
        let context = tempfile::tempdir().unwrap();
        fs::write(context.path().join("cargo"), CARGO).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_rpicluster"), context.path().join("rpicluster")).unwrap();
        let text = format!(
            "FROM {base}\nCOPY rpicluster /usr/local/lib/\nCOPY cargo /usr/local/bin/\nRUN chmod 755 /usr/local/bin/cargo\n"
        );
        self.build(build, &text, context.path(), &[]);
    }

    /// The program in a Debian whose init is systemd, with D-Bus, logind and polkit.
    pub(crate) fn systemd_image(&mut self, name: &str) {
        self.extended(name, "systemd", "systemd-sysv dbus libpam-systemd polkitd");
    }

    /// Debian's mosquitto under the name of the image that docker-compose.yml uses.
    pub(crate) fn mosquitto_image(&mut self) {
        let compose = fs::read_to_string(top().join("docker-compose.yml")).unwrap();
        let name = compose.lines().find_map(|line| line.trim().strip_prefix("image: ")?.strip_prefix("eclipse-"));
        self.extended(&format!("eclipse-{}", name.unwrap()), "mosquitto", "mosquitto");
    }

    /// Remembers whose `name` was, before an image of the test gets it.
    pub(crate) fn take(&mut self, name: &str) {
        if self.taken.iter().any(|(known, _)| known == name) {
            return;
        }
        let before = docker(&["images", "--quiet", "--no-trunc", name]).out.trim().to_owned();
        self.taken.push((name.to_owned(), Some(before).filter(|id| !id.is_empty())));
    }

    fn debian(&mut self, name: &str) {
        let tar = cached("debian", |tar| {
            let folder = tempfile::tempdir_in(tar.parent().unwrap()).unwrap();
            let mut bootstrap = Command::new("debootstrap");
            bootstrap.args(["--variant=minbase", RELEASE]).arg(folder.path()).args(mirror());
            succeeds(bootstrap);
            let mut pack = Command::new("tar");
            pack.arg("--directory").arg(folder.path()).arg("--exclude=./var/cache/apt/archives/*.deb");
            pack.args(["--exclude=./var/lib/apt/lists/*", "--create", "--file"]).arg(tar).arg(".");
            succeeds(pack);
        });
        self.import(&tar, name);
    }

    /// A Debian with more packages.
    fn extended(&mut self, name: &str, what: &str, packages: &str) {
        let tar = cached(what, |tar| {
            let base = format!("{name}-base");
            self.debian(&base);
            let install = "apt-get update && apt-get install --yes --no-install-recommends";
            let text = format!("FROM {base}\nRUN {install} {packages} && apt-get clean && rm -r /var/lib/apt/lists\n");
            let context = tempfile::tempdir().unwrap();
            // Packages come from where this machine gets its own.
            self.build(name, &text, context.path(), &["--network", "host"]);
            let container = docker(&["create", name, "true"]).out.trim().to_owned();
            docker(&["export", "--output", tar.to_str().unwrap(), &container]);
            docker(&["rm", &container]);
        });
        self.import(&tar, name);
    }

    fn import(&mut self, tar: &Path, name: &str) {
        self.take(name);
        docker(&["import", "--change", &format!("LABEL {LABEL}=yes"), tar.to_str().unwrap(), name]);
    }

    fn build(&mut self, name: &str, text: &str, context: &Path, options: &[&str]) {
        self.take(name);
        fs::write(context.join("Dockerfile"), text).unwrap();
        docker(&[&["build", "--quiet", "--tag", name], options, &[context.to_str().unwrap()]].concat());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        remove_all();
        for (name, before) in self.taken.drain(..).rev() {
            if let Some(id) = before {
                // An image of the test that had the name before is gone by now.
                let _ = run(command(&["tag", &id, &name]));
            }
        }
    }
}

/// Says that a test did not run; tests/run.sh repeats it at its end. Past the test harness, which shows what fails only.
pub(crate) fn skipped(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// The repository's top folder.
pub(crate) fn top() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize().unwrap()
}

/// Runs `docker` with these arguments, which must succeed.
pub(crate) fn docker(arguments: &[&str]) -> Finished {
    succeeds(command(arguments))
}

/// `docker` with these arguments.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    // The classic builder is there wherever an engine is.
    command.args(arguments).env("DOCKER_BUILDKIT", "0");
    command
}

/// Runs a command that must succeed.
pub(crate) fn succeeds(command: Command) -> Finished {
    let name = format!("{command:?}");
    let finished = run(command);
    assert_eq!(finished.code, Some(0), "{name}:\n{}{}", finished.out, finished.err);
    finished
}

/// The tar file of a root file system, made if it is not there yet.
fn cached(what: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("images");
    fs::create_dir_all(&folder).unwrap();
    let tar = folder.join(format!("{RELEASE}-{what}.tar"));
    if !tar.exists() {
        let unready = folder.join(format!("{RELEASE}-{what}.new"));
        make(&unready);
        fs::rename(&unready, &tar).unwrap();
    }
    tar
}

/// Where apt gets this release from on this machine; debootstrap's own choice if it gets another one.
fn mirror() -> Option<String> {
    let mut targets = Command::new("apt-get");
    let release = format!("Codename: {RELEASE}");
    targets.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Component: main",
        "Origin: Debian",
    ]);
    let found = run({
        targets.arg(release);
        targets
    });
    found.out.lines().next().map(str::to_owned)
}

/// Removes what tests have made, killed ones too.
fn remove_all() {
    let label = format!("label={LABEL}");
    let containers = listed(&["ps", "--all", "--quiet", "--filter", &label]);
    remove(&["rm", "--force", "--volumes"], &containers);
    // An image goes after those that build on it.
    let mut left = usize::MAX;
    loop {
        let images = listed(&["images", "--all", "--quiet", "--filter", &label]);
        if images.is_empty() || images.len() >= left {
            break;
        }
        left = images.len();
        remove(&["rmi", "--force"], &images);
    }
}

fn listed(arguments: &[&str]) -> BTreeSet<String> {
    docker(arguments).out.lines().map(str::to_owned).collect()
}

fn remove(how: &[&str], ids: &BTreeSet<String>) {
    if !ids.is_empty() {
        // What could not be removed is seen in the next list.
        let _ = run(command(&[how, &ids.iter().map(String::as_str).collect::<Vec<_>>()].concat()));
    }
}
