//! Connections and what travels over them: late, never, twice, or after its session.

use super::*;

impl World {
    pub(super) fn say(&mut self, effect: TaskEffect) {
        let (slave, down) = match effect {
            TaskEffect::Offer(slave, offer) => (slave, Down::Offer(offer)),
            TaskEffect::Cancel(slave, cancel) => (slave, Down::Cancel(cancel)),
            TaskEffect::Ack(slave, ack) => (slave, Down::Ack(ack)),
            TaskEffect::LeaseAck(slave, lease) => (slave, Down::LeaseAck(lease)),
            TaskEffect::Announce(slave) => (slave, Down::Announce),
            _ => return,
        };
        let Some(node) = self.nodes.iter().position(|node| node.id == slave) else { return };
        let Some(session) = self.nodes[node].session.clone() else { return };
        // A full queue drops, a repeated delivery doubles.
        let copies = if self.healed { 1 } else { [0, 1, 1, 1, 1, 1, 1, 1, 1, 2][self.random.usize(..10)] };
        for _ in 0..copies {
            let after = self.under_way(node, false);
            self.at(after, Event::ToNode(node, session.clone(), down.clone()));
        }
    }

    /// How long a message takes, without overtaking one before.
    pub(super) fn under_way(&mut self, node: usize, up: bool) -> u64 {
        let wanted = self.clock + self.random.u64(1..60);
        let last = self.arrivals.entry((node, up)).or_default();
        *last = wanted.max(*last);
        *last - self.clock
    }

    pub(super) fn connect(&mut self, node: usize) {
        if self.nodes[node].journal.is_none() || self.nodes[node].session.is_some() {
            return;
        }
        if self.head.is_none() {
            return self.within(3_000, Event::Connect(node));
        }
        if let Some(until) = self.away.get(&node).copied().filter(|until| *until > self.clock) {
            return self.at(until - self.clock, Event::Connect(node));
        }
        let session = SessionId::from_random(self.random.u64(..));
        self.nodes[node].session = Some(session.clone());
        self.nodes[node].removed = false;
        let slots = self.nodes[node].slots();
        self.send(node, Up::State(slots));
        let effects = self.nodes[node].handle(self.clock, Input::SessionBegan(session));
        self.apply(node, effects);
    }

    /// The connection breaks; what was under way upwards may still come, and late, if the broker lives.
    pub(super) fn disconnect(&mut self, node: usize, broker_lives: bool) {
        let Some(session) = self.nodes[node].session.take() else { return };
        let effects = self.nodes[node].handle(self.clock, Input::SessionEnded);
        self.apply(node, effects);
        let mut late = Vec::new();
        self.bodies.retain(|_, event| match event {
            Event::ToHead(of, in_session, up) if *of == node && *in_session == session => {
                late.push(up.clone());
                false
            }
            _ => true,
        });
        if broker_lives {
            for up in late {
                if self.random.bool() {
                    self.within(3_000, Event::ToHead(node, session.clone(), up));
                }
            }
            self.within(7_000, Event::Missed(node, session));
        }
        // Now and then for longer than a lease.
        let away = if self.random.u8(..8) == 0 { 400_000 } else { 10_000 };
        self.within(away, Event::Connect(node));
    }

    pub(super) fn send(&mut self, node: usize, up: Up) {
        let Some(session) = self.nodes[node].session.clone() else { return };
        let may_be_shed = !matches!(up, Up::State(_));
        if may_be_shed && !self.healed && self.random.u8(..30) == 0 {
            return;
        }
        let after = self.under_way(node, true);
        self.at(after, Event::ToHead(node, session, up));
    }

    pub(super) fn head_hears(&mut self, node: usize, session: SessionId, up: Up) {
        let slave = self.nodes[node].id.clone();
        let input = match up {
            // Presence knows a session that another one has replaced.
            Up::State(_) if self.nodes[node].session.as_ref() != Some(&session) => return,
            Up::State(slots) => {
                self.online.insert(node, session.clone());
                TaskInput::SlaveUp(slave, session, slots)
            }
            Up::Journal(journal, entries) => TaskInput::Journal(slave, session, journal, entries),
            Up::Event(event) => TaskInput::Event(slave, event),
            Up::Output(output) => TaskInput::Output(slave, output),
            Up::Lease(lease) => TaskInput::Lease(slave, lease),
        };
        self.tell_head(input);
    }

    pub(super) fn node_hears(&mut self, node: usize, session: &SessionId, down: Down) {
        if self.nodes[node].session.as_ref() != Some(session) {
            return;
        }
        let input = match down {
            Down::Offer(offer) => Input::Offer { offer, verdict: Verdict::Run },
            Down::Cancel(cancel) => Input::Cancel(cancel),
            Down::Ack(ack) => {
                self.checks.acknowledged(&self.nodes[node], &self.disk, &ack);
                if let Some((_, acked)) = self.nodes[node].spool.get_mut(&ack.key) {
                    *acked = ack.stdout.max(*acked);
                }
                Input::Ack(ack)
            }
            Down::LeaseAck(lease) => Input::LeaseAck(lease),
            Down::Announce => Input::Announced,
        };
        let effects = self.nodes[node].handle(self.clock, input);
        self.apply(node, effects);
    }
}
