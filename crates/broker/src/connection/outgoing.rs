//! What a connection sends of its client's messages: within the client's window, and no further ahead of the socket than a
//! chunk.

use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{CHUNK, Connection};
use crate::client::{Inflight, Queued};
use crate::codec::{Delivered, QoS, encode_ack, encode_publish, reason};
use crate::stats::Stats;

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// Encodes waiting messages while there is room.
    pub(super) fn fill(&mut self) {
        self.resend();
        self.hub.hand_over(&mut self.attachment);
        let room = CHUNK.saturating_sub(self.output.len() - self.written);
        let window = usize::from(self.settings.window).saturating_sub(self.attachment.session.inflight.len());
        if room > 0 {
            let mut taken = std::mem::take(&mut self.taken);
            self.attachment.client.take(&mut taken, room, window, &self.hub.limits);
            for queued in taken.drain(..) {
                self.send(queued);
            }
            self.taken = if taken.capacity() > 16 { Vec::new() } else { taken };
        }
        if self.written < self.output.len() {
            self.stalled_since.get_or_insert_with(Instant::now);
        }
    }

    /// Sends again what an earlier connection of the session left unacknowledged (MQTT 4.4), while there is room.
    fn resend(&mut self) {
        let Connection { attachment, hub, settings, output, written, .. } = self;
        let session = &mut attachment.session;
        while session.inflight.len() < usize::from(settings.window)
            && output.len() - *written < CHUNK
            && let Some(inflight) = session.again.pop_front()
        {
            match &inflight.queued {
                Some(queued) => {
                    // A message that expired meanwhile is sent all the same: its first sending had begun before.
                    let expiry = queued.message.expiry(hub.clock).unwrap_or(Some(0));
                    let delivered = Delivered { dup: true, ..delivered(queued, inflight.packet_id, expiry) };
                    if delivered.encoded_length(settings.version) > settings.packet_bytes_max {
                        Stats::add(&hub.stats.dropped_too_large, 1);
                        Stats::add(&attachment.client.counts.dropped, 1);
                        continue;
                    }
                    encode_publish(output, settings.version, &delivered);
                }
                None => encode_ack(output, settings.version, 0x62, inflight.packet_id, reason::SUCCESS),
            }
            session.inflight.push_back(inflight);
        }
    }

    fn send(&mut self, queued: Queued) {
        let stats = &self.hub.stats;
        let Ok(expiry) = queued.message.expiry(self.hub.clock) else {
            Stats::add(&stats.dropped_expired, 1);
            Stats::add(&self.attachment.client.counts.dropped, 1);
            return;
        };
        let session = &mut self.attachment.session;
        let packet_id = if queued.qos == QoS::AtMostOnce { 0 } else { session.next_packet_id() };
        let message = delivered(&queued, packet_id, expiry);
        // MQTT 5 3.1.2-25: it is then treated as if it had been sent.
        if message.encoded_length(self.settings.version) > self.settings.packet_bytes_max {
            Stats::add(&stats.dropped_too_large, 1);
            Stats::add(&self.attachment.client.counts.dropped, 1);
            return;
        }
        encode_publish(&mut self.output, self.settings.version, &message);
        Stats::add(&stats.messages_sent, 1);
        Stats::add(&self.attachment.client.counts.sent, 1);
        if packet_id != 0 {
            session.inflight.push_back(Inflight { packet_id, queued: Some(queued) });
        }
    }
}

fn delivered(queued: &Queued, packet_id: u16, expiry: Option<u32>) -> Delivered<'_> {
    Delivered {
        topic: queued.message.topic(),
        payload: queued.message.payload(),
        qos: queued.qos,
        retain: queued.retain,
        dup: false,
        packet_id,
        expiry,
        passed: queued.message.properties(),
        subscription_ids: &queued.subscription_ids,
    }
}
