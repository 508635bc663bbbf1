//! A broker with bystanders on both versions, on which scripts are played, and what must hold after each.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rpicluster_broker::{Broker, BrokerConfig, LinkReceiver, Security, SlowSubscriber, Stats};
use tokio::runtime::Runtime;

use super::line::{Line, Published, Tag};
use super::script::{Action, ClientId, Hello, Publication, Script, Step, greeting, publication};
use super::wire::{framed, text};

/// Whatever is awaited comes within this, or the broker hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const STEPS_MAX: usize = 64;
/// The bystanders must not be cut for a full queue: they are awaited whenever this much was sent.
const BYTES_AHEAD: usize = 16 * 1024;
/// Numbers of the bystanders' own messages.
const BYSTANDER_LINES: [u16; 2] = [60_000, 60_001];
const SESSIONS_AWAY: usize = 8;
const SUBSCRIPTIONS: usize = 6;
const RETAINED: usize = 12;

/// A broker, its bystanders, and the thread's runtime for them.
pub struct Arena {
    runtime: Runtime,
    world: World,
}

struct World {
    address: SocketAddr,
    stats: Arc<Stats>,
    /// Subscribed to everything, on 3.1.1 and 5.
    bystanders: Vec<Line>,
    /// What the in-process link received.
    link: Arc<Mutex<Vec<Tag>>>,
    run: u32,
}

/// One script as it is played.
struct Play<'a> {
    world: &'a mut World,
    /// Every connection of each client, open or not; the last is the one that acts.
    clients: Vec<Vec<Line>>,
    last_line: u16,
    last_packet_id: u16,
    last_number: u16,
    bytes_ahead: usize,
    /// Sent again when it was not certain that the session still knows it: these may come twice.
    may_repeat: HashSet<Tag>,
    /// Clients met in a session in an order that is not known here.
    contested: bool,
    /// A client broke the rules in a way that may concern later exchanges at QoS 2 of its session.
    wild: bool,
}

impl Arena {
    pub fn new(slow_subscriber: SlowSubscriber) -> Arena {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let world = runtime.block_on(World::start(slow_subscriber));
        Arena { runtime, world }
    }

    /// Plays a script with so many clients; says what went wrong.
    pub fn play(&mut self, clients: usize, script: &Script) -> Result<(), String> {
        self.world.run += 1;
        self.runtime.block_on(Play::new(&mut self.world, clients).whole(script))
    }
}

impl World {
    /// Everything is small, so that limits are met.
    async fn start(slow_subscriber: SlowSubscriber) -> World {
        let mut config = BrokerConfig::default();
        config.listeners.retain(|name, _| name == "local");
        config.listeners.values_mut().for_each(|listener| listener.address.set_port(0));
        let limits = &mut config.limits;
        limits.connections = 80;
        limits.write_timeout = Duration::from_secs(1);
        limits.packet_bytes = 4096;
        limits.user_properties = 2;
        limits.inflight = 4;
        limits.subscriptions = SUBSCRIPTIONS;
        limits.subscriptions_total = 16;
        limits.queue_messages = 1024;
        limits.queue_bytes = 128 * 1024;
        limits.slow_subscriber = slow_subscriber;
        limits.retained_messages = RETAINED;
        limits.retained_messages_per_client = RETAINED / 2;
        limits.retained_bytes = 16 * 1024;
        limits.sessions = SESSIONS_AWAY;
        // A session under a client id that came as raw bytes is not known here: it ends by itself.
        limits.session_expiry = Duration::from_secs(2);
        config.router.segment_bytes = 8192;
        config.router.segment_count = 2;
        let broker = Broker::bind(config, Security::trusting()).await.unwrap();
        let (address, stats) = (broker.addresses()[0].1, broker.stats());
        let (_, receiver) = broker.link(vec!["#".into()]).unwrap();
        let link = Arc::default();
        tokio::spawn(listen(receiver, Arc::clone(&link)));
        tokio::spawn(broker.run(std::future::pending()));
        let mut world = World { address, stats, bystanders: vec![], link, run: 0 };
        world.open_bystanders().await;
        world
    }

    async fn open_bystanders(&mut self) {
        // Nobody else comes upon such a client id.
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        for (v5, number) in [false, true].into_iter().zip(BYSTANDER_LINES) {
            let id = format!("bystander-{number}-{started}");
            let mut line = Line::open(self.address, number, v5, id.clone()).await.unwrap();
            let options = if v5 { 1 } else { 2 };
            let subscribe = [&[0, 1][..], if v5 { &[0] } else { &[] }, &text("#"), &[options]].concat();
            let hello = Hello { v5, keep_alive: 0, ..greeting() };
            line.send(&[hello.bytes(&id), framed(0x82, &subscribe), vec![0xc0, 0]].concat(), 0).await;
            self.bystanders.push(line);
        }
        let mut play = Play::new(self, 0);
        play.until("the bystanders subscribe", |play| play.world.bystanders.iter().all(|line| line.pongs > 0))
            .await
            .unwrap();
    }
}

async fn listen(mut receiver: LinkReceiver, heard: Arc<Mutex<Vec<Tag>>>) {
    while let Ok(delivery) = receiver.recv().await {
        heard.lock().unwrap().extend(Tag::of(&delivery.payload()));
    }
}

impl<'a> Play<'a> {
    fn new(world: &'a mut World, clients: usize) -> Self {
        Play {
            world,
            clients: (0..clients).map(|_| vec![]).collect(),
            last_line: 0,
            last_packet_id: 0,
            last_number: 0,
            bytes_ahead: 0,
            may_repeat: HashSet::new(),
            contested: false,
            wild: false,
        }
    }

    async fn whole(mut self, script: &Script) -> Result<(), String> {
        for step in script.steps.iter().take(STEPS_MAX) {
            self.step(step).await?;
        }
        self.settle().await?;
        self.clients.iter_mut().flatten().for_each(|line| line.close(false));
        self.alone().await?;
        self.round_trip().await?;
        self.check_messages()?;
        self.clean_up().await?;
        self.check_stats()
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        let client = usize::from(step.second) % self.clients.len();
        let is_open = self.clients[client].last().is_some_and(Line::is_open);
        match &step.action {
            Action::Connect(hello) => self.connect(client, hello, step.split).await?,
            Action::Close { .. } if !is_open => {}
            action => {
                if !is_open {
                    let hello = Hello { v5: step.second, answers: !step.second, ..greeting() };
                    self.connect(client, &hello, 0).await?;
                }
                self.act(client, action, step.split).await?;
            }
        }
        for _ in 0..if step.pause { 4 } else { 0 } {
            self.pump().await?;
        }
        if self.bytes_ahead > BYTES_AHEAD { self.round_trip().await } else { Ok(()) }
    }

    async fn connect(&mut self, client: usize, hello: &Hello, split: u8) -> Result<(), String> {
        let id = client_id(client, hello.id);
        let others = self.clients.iter().enumerate().flat_map(|(of, lines)| lines.iter().map(move |line| (of, line)));
        let mut others = others.filter(|(_, line)| line.client_id == id);
        self.contested |= others.any(|(of, line)| of != client || !line.welcomed);
        self.last_line += 1;
        let line = Line::open(self.world.address, self.last_line, hello.v5, id.clone()).await;
        let mut line = line.map_err(|error| format!("cannot connect: {error}"))?;
        if let Some(before) = self.clients[client].last_mut() {
            before.answers = false;
            if before.client_id == id && !hello.clean {
                line.unreleased = before.unreleased.clone();
            }
        }
        (line.clean, line.answers, line.deaf) = (hello.clean, hello.answers, hello.deaf);
        line.send(&hello.bytes(&id), split.into()).await;
        self.clients[client].push(line);
        Ok(())
    }

    async fn act(&mut self, client: usize, action: &Action, split: u8) -> Result<(), String> {
        self.wild |= matches!(action, Action::Raw(_) | Action::WrongAnswer { .. });
        if matches!(action, Action::Resend) {
            self.await_welcome(client).await?;
        }
        let (run, number, packet_id) = (self.world.run, self.last_number + 1, self.last_packet_id + 1);
        let Some(line) = self.clients[client].last_mut() else { return Ok(()) };
        match action {
            Action::Publish(publication) => {
                (self.last_number, self.last_packet_id) = (number, packet_id);
                let tag = Tag { run, line: line.number, number };
                let bytes = publication.bytes(line.v5, packet_id, &tag.bytes());
                self.bytes_ahead += bytes.len() + 100;
                let must_arrive = publication.must_arrive(line.v5) && !(self.wild && publication.qos() == 2);
                line.publish(Published { tag, qos: publication.qos(), packet_id, must_arrive, bytes }, split.into())
                    .await;
            }
            Action::Resend if line.welcomed => {
                for published in line.unreleased.clone() {
                    self.bytes_ahead += published.bytes.len() + 100;
                    if self.contested || self.wild {
                        self.may_repeat.insert(published.tag);
                    }
                    line.pending.insert(published.packet_id, published.clone());
                    line.send(&published.bytes, split.into()).await;
                }
            }
            Action::Answer => {
                line.receive().await?;
                line.answer().await;
            }
            Action::Close { reset } => line.close(*reset),
            Action::ConnectAgainOnSameSocket(hello) => {
                line.send(&hello.bytes(&line.client_id.clone()), split.into()).await
            }
            action => {
                let bytes = action.bytes(line.v5);
                line.garbled |= matches!(action, Action::Raw(_));
                // Five bytes may be a message.
                self.bytes_ahead += if line.garbled { bytes.len() * 20 } else { bytes.len() };
                line.send(&bytes, split.into()).await;
            }
        }
        Ok(())
    }

    /// A client sends again only when it knows whether its session is there.
    async fn await_welcome(&mut self, client: usize) -> Result<(), String> {
        for _ in 0..8 {
            if self.clients[client].last().is_some_and(|line| line.is_open() && !line.welcomed && !line.deaf) {
                self.pump().await?;
            }
        }
        Ok(())
    }

    /// Lets the broker act, and takes in what it says.
    async fn pump(&mut self) -> Result<(), String> {
        // The router is a thread of its own.
        std::thread::yield_now();
        tokio::task::yield_now().await;
        for line in self.world.bystanders.iter_mut().chain(self.clients.iter_mut().flatten()) {
            line.receive().await?;
        }
        Ok(())
    }

    async fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) -> Result<(), String> {
        let start = Instant::now();
        while !condition(self) {
            if start.elapsed() > PATIENCE {
                return Err(format!("hangs: {what} did not come to pass; {:?}", self.world.stats.snapshot()));
            }
            self.pump().await?;
        }
        Ok(())
    }

    /// Whoever speaks MQTT gets an answer or an end.
    async fn settle(&mut self) -> Result<(), String> {
        let mut waiting = vec![];
        for (client, lines) in self.clients.iter_mut().enumerate() {
            for (index, line) in lines.iter_mut().enumerate().filter(|(_, line)| !line.deaf && !line.garbled) {
                line.send(&[0xc0, 0], 0).await;
                waiting.push((client, index, line.pongs));
            }
        }
        let answered = |play: &Self, &(client, index, pongs): &(usize, usize, usize)| {
            let line: &Line = &play.clients[client][index];
            !line.is_open() || line.pongs > pongs
        };
        self.until("an answer to PINGREQ", |play| waiting.iter().all(|of| answered(play, of))).await
    }

    /// Waits until the broker has noticed that only the bystanders are left.
    async fn alone(&mut self) -> Result<(), String> {
        let others_gone = |play: &Self| play.world.stats.connections_now.load(Relaxed) == BYSTANDER_LINES.len() as u64;
        self.until("the end of the connections", others_gone).await
    }

    /// The bystanders and the link hear what either bystander says, after all that was accepted before.
    async fn round_trip(&mut self) -> Result<(), String> {
        self.bytes_ahead = 0;
        self.last_number += 1;
        let (run, number) = (self.world.run, self.last_number);
        for line in &mut self.world.bystanders {
            let tag = Tag { run, line: line.number, number };
            let bytes = publication().bytes(line.v5, 0, &tag.bytes());
            line.send(&bytes, 0).await;
        }
        let both = |heard: &[Tag]| BYSTANDER_LINES.iter().all(|line| heard.contains(&Tag { run, line: *line, number }));
        self.until("the bystanders' round trip", |play| {
            play.world.bystanders.iter().all(|line| both(&line.heard)) && both(&play.world.link.lock().unwrap())
        })
        .await
    }

    /// What was accepted arrived, in order and once.
    fn check_messages(&mut self) -> Result<(), String> {
        let run = self.world.run;
        let mut everything = vec![std::mem::take(&mut *self.world.link.lock().unwrap())];
        everything.extend(self.world.bystanders.iter_mut().map(|line| std::mem::take(&mut line.heard)));
        let lines = || self.clients.iter().flatten();
        for heard in everything.iter().chain(lines().map(|line| &line.heard)) {
            let mut last = HashMap::new();
            for tag in heard.iter().filter(|tag| tag.run == run && !self.may_repeat.contains(tag)) {
                let before = last.insert(tag.line, tag.number);
                if before.is_some_and(|before| before >= tag.number) {
                    return Err(format!("{tag:?} came after {before:?}: {heard:?}"));
                }
            }
        }
        for published in lines().flat_map(|line| &line.accepted).filter(|published| published.must_arrive) {
            if let Some(heard) = everything.iter().find(|heard| !heard.contains(&published.tag)) {
                return Err(format!("{published:?} was accepted and is lost: {heard:?}"));
            }
        }
        Ok(())
    }

    /// Ends the sessions that the clients left behind, and takes away retained messages when there are many.
    async fn clean_up(&mut self) -> Result<(), String> {
        if self.world.stats.sessions_now.load(Relaxed) > BYSTANDER_LINES.len() as u64 {
            for client in 0..self.clients.len() {
                for id in [ClientId::Own, ClientId::Shared, ClientId::Reserved] {
                    self.connect(client, &Hello { id, ..greeting() }, 0).await?;
                    self.act(client, &Action::Disconnect { reason: None, properties: Default::default() }, 0).await?;
                }
            }
            self.alone().await?;
        }
        if self.world.stats.retained_now.load(Relaxed) > RETAINED as u64 / 2 {
            let bystander = &mut self.world.bystanders[0];
            for topic in Publication::topics() {
                bystander.send(&framed(0x31, &text(topic)), 0).await;
            }
            self.round_trip().await?;
        }
        Ok(())
    }

    fn check_stats(&self) -> Result<(), String> {
        let now = self.world.stats.snapshot();
        let bystanders = BYSTANDER_LINES.len() as u64;
        let away = now["sessions_now"].checked_sub(bystanders).ok_or("sessions_now is below the truth")?;
        let good = now["connection_panics"] == 0
            && now["router_gaps"] == 0
            && away <= SESSIONS_AWAY as u64
            && now["subscriptions_now"] >= bystanders
            && now["subscriptions_now"] <= bystanders + away * SUBSCRIPTIONS as u64
            && now["retained_now"] <= RETAINED as u64;
        if good { Ok(()) } else { Err(format!("something is left behind: {now:?}")) }
    }
}

fn client_id(client: usize, id: ClientId) -> String {
    match id {
        ClientId::Own => format!("own-{client}"),
        ClientId::Shared => "shared".to_owned(),
        ClientId::Empty => String::new(),
        ClientId::TooLong => "long".repeat(100),
        ClientId::Reserved => "master".to_owned(),
    }
}
