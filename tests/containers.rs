use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rpicluster_protocol::limits::{BACKOFF_MAX, KEEP_ALIVE, PRESENCE_TIMEOUT};
use serde_json::Value;

use crate::harness::docker::{Engine, command, docker, skipped, succeeds, top};
use crate::harness::{Finished, figure, run, timed, wait_for, wait_until, within};

/// The name of the compose project, and so the beginning of what it makes.
const PROJECT: &str = "rpiclustertest";
/// The image that docker-compose.yml names.
const IMAGE: &str = "rpicluster";
/// What README.md's section on containers begins with.
const SECTION: &str = "## In containers";
/// How long the master may need to hear of a slave that is gone: 1.5 times its keep alive, and one second.
const GONE_WITHIN: Duration = Duration::from_millis(KEEP_ALIVE.as_millis() as u64 * 3 / 2 + 1000);
/// How long a slave may wait before it tries to connect, and how long that may take where names are asked for.
const BACK_WITHIN: Duration = Duration::from_secs(BACKOFF_MAX.as_secs() + 15);
/// How long a partition lasts.
const PARTITION: Duration = Duration::from_secs(30);

/// The cluster of docker-compose.yml. Dropped, nothing is left of it.
struct Bed {
    compose: Vec<&'static str>,
    engine: Engine,
    /// The service whose container is asked.
    master: &'static str,
}

impl Bed {
    /// With the images that it needs, but nothing running. `None`, and a line that says so, where that cannot be had.
    fn make(test: &str) -> Option<Bed> {
        let mut engine = Engine::find(test)?;
        let found = |words: &[&str]| {
            let mut version = Command::new(words[0]);
            version.args(&words[1..]).arg("version");
            version.output().is_ok_and(|answer| answer.status.success())
        };
        let Some(compose) = [&["docker", "compose"][..], &["docker-compose"]].into_iter().find(|words| found(words))
        else {
            skipped(test, "docker compose is not installed");
            return None;
        };
        engine.base_images();
        engine.take(IMAGE);
        let bed = Bed { compose: compose.to_vec(), engine, master: "master" };
        bed.down();
        Some(bed)
    }

    /// `docker compose` in the repository's top folder.
    fn compose(&self, arguments: &[&str]) -> Command {
        let mut compose = Command::new(self.compose[0]);
        compose.args(&self.compose[1..]).args(arguments).current_dir(top());
        compose.env("COMPOSE_PROJECT_NAME", PROJECT).env("DOCKER_BUILDKIT", "0");
        compose.env("RPICLUSTER_HTTP_PORT", "0").env("RPICLUSTER_MQTTS_PORT", "0");
        compose
    }

    fn down(&self) -> Finished {
        run(self.compose(&["--profile", "external", "down", "--volumes", "--remove-orphans", "--timeout", "2"]))
    }

    /// The containers of a service.
    fn containers(&self, service: &str) -> Vec<String> {
        let label = |name: &str, value: &str| format!("label=com.docker.compose.{name}={value}");
        let (project, service) = (label("project", PROJECT), label("service", service));
        // The oldest first: --scale adds others behind them.
        let list = docker(&["ps", "--all", "--quiet", "--filter", &project, "--filter", &service]).out;
        list.lines().rev().map(str::to_owned).collect()
    }

    /// What the master tells of each slave: its state.
    fn states(&self) -> BTreeMap<String, String> {
        let asked = run(command(&["exec", &self.containers(self.master)[0], "rpicluster", "slaves", "--json"]));
        let list: Vec<Value> = serde_json::from_str(&asked.out).unwrap_or_default();
        let word = |slave: &Value, key: &str| slave[key].as_str().unwrap_or_default().to_owned();
        list.iter().map(|slave| (word(slave, "id"), word(slave, "state"))).collect()
    }

    fn is_online(&self, id: &str) -> bool {
        self.states().get(id).is_some_and(|state| state == "online")
    }

    /// The slave in a container: its id, once it is connected and a master has answered it.
    fn slave(&self, container: &str) -> String {
        wait_for("the slave is well", || {
            let told = run(command(&["exec", container, "rpicluster", "health", "slave"]));
            let well = told.out.strip_prefix("slave ").filter(|_| told.code == Some(0));
            well.and_then(|rest| Some(rest.split_once(' ')?.0.to_owned()))
        })
    }

    /// Presence, replies, and whatever else a whole cluster can do, across each fault: all slaves are online and no other
    /// is known, and each has got its answer from this master in this session.
    fn all_is_well(&self, slaves: usize) {
        wait_until(&format!("{slaves} slaves are online"), || {
            let states = self.states();
            states.len() == slaves && states.values().all(|state| state == "online")
        });
        let states = self.states();
        for container in self.containers("slave") {
            assert!(states.contains_key(&self.slave(&container)));
        }
        let told = self.ask(&["run", "--on", "all", "--", "sh", "-c", "echo it is $RPICLUSTER_SLAVE"]);
        for id in states.keys() {
            assert!(told.contains(&format!("{id}: it is {id}\n")), "{told}");
        }
    }

    /// A command in the master's container that must succeed: what it prints.
    fn ask(&self, arguments: &[&str]) -> String {
        let master = &self.containers(self.master)[0];
        succeeds(command(&[&["exec", master, "rpicluster"], arguments].concat())).out
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = run(self.compose(&["logs", "--tail", "20"]));
            eprintln!("--- logs of the containers:\n{}{}", logs.out, logs.err);
        }
        self.down();
    }
}

/// How far a task counts, a second for each: beyond the partition.
const COUNTED: u64 = 45;

/// The lines of shell in README.md's section on containers.
fn readme() -> Vec<String> {
    let text = fs::read_to_string(top().join("README.md")).unwrap();
    let section = text.split_once(SECTION).expect("README.md has the section").1;
    let block = section.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    block
        .lines()
        .map(|line| line.split('#').next().unwrap().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn the_cluster_of_the_readme_survives_what_befalls_hosts() {
    let Some(bed) = Bed::make("the cluster of docker-compose.yml") else { return };
    assert_eq!(succeeds(bed.compose(&["config", "--quiet"])).err, "");
    let lines = readme();
    let (down, first) = lines.split_last().unwrap();
    let as_written = |line: &str| {
        let arguments: Vec<&str> =
            line.strip_prefix("docker compose ").expect("a line of compose").split(' ').collect();
        succeeds(bed.compose(&arguments))
    };
    for line in first {
        as_written(line);
    }
    assert_eq!(bed.containers("slave").len(), 3);
    bed.all_is_well(3);
    the_image_is_as_it_should_be(&bed);
    a_killed_slave_is_offline_in_time_and_comes_back_as_itself(&bed);
    a_master_that_was_stopped_finds_all_its_slaves_again(&bed);
    succeeds(bed.compose(&["up", "--detach", "--scale", "slave=6"]));
    bed.all_is_well(6);
    half_of_six_slaves_cut_off_for_half_a_minute_are_offline_in_time_and_come_back(&bed);
    as_written(down);
    assert!(bed.containers("slave").is_empty());
}

#[test]
fn the_profile_with_a_broker_that_others_run_is_a_cluster_too() {
    let Some(mut bed) = Bed::make("the external profile of docker-compose.yml") else { return };
    bed.engine.mosquitto_image();
    let slaves = ["external-slave-1", "external-slave-2"];
    let up = ["--profile", "external", "up", "--build", "--detach", "external-master"];
    succeeds(bed.compose(&[&up[..], &slaves].concat()));
    bed.master = "external-master";
    let containers = slaves.map(|slave| bed.containers(slave).remove(0));
    let online = || bed.states().len() == 2 && bed.states().values().all(|state| state == "online");
    wait_until("both slaves are online", online);
    assert_eq!(containers.each_ref().map(|container| bed.slave(container)), ["slave-1", "slave-2"]);
    assert!(bed.containers("master").is_empty(), "nothing of the other cluster runs");

    // mosquitto looks for dead clients now and then only: silence may tell first.
    let bound = GONE_WITHIN.max(PRESENCE_TIMEOUT) + Duration::from_secs(6);
    let event = Instant::now();
    docker(&["kill", &containers[0]]);
    within(event, bound, "the killed one is offline", || !bed.is_online("slave-1"));
    docker(&["start", &containers[0]]);
    wait_until("it is back", online);
    let network = format!("{PROJECT}_default");
    let event = Instant::now();
    docker(&["network", "disconnect", &network, &containers[1]]);
    within(event, bound, "the one that is cut off is offline", || !bed.is_online("slave-2"));
    docker(&["network", "connect", &network, &containers[1]]);
    within(Instant::now(), BACK_WITHIN, "it is back", online);
    // The broker goes and comes: nobody is marked offline for that, and all are there again.
    for action in ["stop", "start"] {
        docker(&[action, &bed.containers("external-broker")[0]]);
    }
    for container in &containers {
        bed.slave(container);
    }
    wait_until("both are online", online);
    docker(&["restart", &bed.containers("external-master")[0]]);
    wait_until("the master knows both again", online);
    let told = bed.ask(&["run", "--on", "all", "--", "sh", "-c", "echo it is $RPICLUSTER_SLAVE"]);
    assert!(["slave-1", "slave-2"].iter().all(|id| told.contains(&format!("{id}: it is {id}\n"))), "{told}");
}

fn the_image_is_as_it_should_be(bed: &Bed) {
    let size = docker(&["image", "inspect", "--format", "{{.Size}}", IMAGE]).out;
    figure("image of a debug build", size.trim().parse::<u64>().unwrap() / 1_000_000, "MB");
    wait_until("the engine finds all healthy", || {
        let containers = [bed.containers("master"), bed.containers("slave")].concat();
        let format = "--format={{.State.Health.Status}}";
        containers.iter().all(|container| docker(&["inspect", format, container]).out.trim() == "healthy")
    });
    assert_eq!(docker(&["exec", &bed.containers("master")[0], "id", "--user"]).out.trim(), "10001");
}

fn a_killed_slave_is_offline_in_time_and_comes_back_as_itself(bed: &Bed) {
    let slave = &bed.containers("slave")[0];
    let id = bed.slave(slave);
    let turn = timed();
    let event = Instant::now();
    docker(&["kill", slave]);
    within(event, GONE_WITHIN, "the killed one is offline", || !bed.is_online(&id));
    drop(turn);
    docker(&["start", slave]);
    // By the secret that it kept.
    assert_eq!(bed.slave(slave), id);
    bed.all_is_well(3);
}

fn a_master_that_was_stopped_finds_all_its_slaves_again(bed: &Bed) {
    let before = bed.states();
    succeeds(bed.compose(&["stop", "master"]));
    wait_until("the slaves notice", || {
        let health = |slave: &String| run(command(&["exec", slave, "rpicluster", "health", "slave"]));
        bed.containers("slave").iter().all(|slave| health(slave).code == Some(1))
    });
    succeeds(bed.compose(&["start", "master"]));
    within(Instant::now(), BACK_WITHIN, "all are back", || bed.states() == before);
    bed.all_is_well(3);
}

fn half_of_six_slaves_cut_off_for_half_a_minute_are_offline_in_time_and_come_back(bed: &Bed) {
    let slaves = bed.containers("slave");
    let ids: Vec<String> = slaves.iter().map(|slave| bed.slave(slave)).collect();
    let (cut, others) = ids.split_at(3);
    let network = format!("{PROJECT}_default");
    let count = format!("for n in $(seq {COUNTED}); do echo $n; sleep 1; done");
    let job = bed.ask(&["run", "--detach", "--on", "all", "--", "sh", "-c", &count]);
    let job = job.trim();
    wait_until("all have begun to count", || {
        let told = bed.ask(&["logs", job]);
        ids.iter().all(|id| told.contains(&format!("{id}: 1\n")))
    });

    let turn = timed();
    let mut events = Vec::new();
    for slave in &slaves[..3] {
        events.push(Instant::now());
        docker(&["network", "disconnect", &network, slave]);
    }
    for (id, event) in cut.iter().zip(&events) {
        let took = within(*event, GONE_WITHIN, "a slave that is cut off is offline", || !bed.is_online(id));
        figure("offline after a cut", took.as_millis(), "ms");
    }
    drop(turn);
    // Meanwhile the others are not harmed, and nobody is taken for online who is not there.
    while events[0].elapsed() < PARTITION {
        let states = bed.states();
        let as_cut = cut.iter().all(|id| states[id] == "offline") && others.iter().all(|id| states[id] == "online");
        assert!(as_cut, "{states:?}");
    }
    for slave in &slaves[..3] {
        docker(&["network", "connect", &network, slave]);
    }
    within(Instant::now(), BACK_WITHIN, "all are back", || cut.iter().all(|id| bed.is_online(id)));
    // What they did meanwhile is told; nothing ran twice, nothing is lost.
    wait_until("all have counted to the end", || bed.ask(&["jobs", job]).contains("succeeded"));
    let told = bed.ask(&["logs", job]);
    for id in &ids {
        let own = told.lines().filter_map(|line| line.strip_prefix(&format!("{id}: ")));
        assert_eq!(own.collect::<Vec<_>>(), (1..=COUNTED).map(|n| n.to_string()).collect::<Vec<_>>(), "{id}");
    }
    bed.all_is_well(6);
}
