//! Output on its way from the spool to the master: in order, in pieces, again from where it was acknowledged.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use rpicluster_core::Moment;
use rpicluster_protocol::limits::{MESSAGE_BYTES_MAX, OUTPUT_CHUNK_BYTES_MAX, RESEND_MAX, RESEND_MIN};
use rpicluster_protocol::{AttemptKey, Stream, TaskAck, TaskOutput};

use crate::supervisor::spool_path;

/// Bytes of one stream that travel unacknowledged.
const WINDOW_BYTES: u64 = 512 * 1024;
/// What a piece takes beside its bytes, at most.
const PIECE_OVERHEAD_BYTES: usize = 256;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// The output of all attempts that are held.
#[derive(Debug)]
pub(crate) struct Outputs {
    folder: PathBuf,
    attempts: HashMap<AttemptKey, Output>,
    /// Those that may have something to send, each once.
    ready: VecDeque<AttemptKey>,
}

#[derive(Debug, Default)]
struct Output {
    streams: [Sent; 2],
    is_ready: bool,
    /// Nothing more will be written.
    is_whole: bool,
    resend: Option<(Moment, Duration)>,
}

/// How far a stream has come, in bytes.
#[derive(Debug, Default)]
struct Sent {
    kept: u64,
    sent: u64,
    acked: u64,
    file: Option<File>,
}

impl Outputs {
    pub(crate) fn new(folder: PathBuf) -> Outputs {
        Outputs { folder, attempts: HashMap::new(), ready: VecDeque::new() }
    }

    /// So much waits in the spool; `is_whole` if that is all.
    pub(crate) fn grow(&mut self, key: AttemptKey, kept: [u64; 2], is_whole: bool) {
        if kept == [0, 0] {
            return;
        }
        let output = self.attempts.entry(key).or_default();
        for (stream, kept) in output.streams.iter_mut().zip(kept) {
            stream.kept = stream.kept.max(kept);
        }
        output.is_whole |= is_whole;
        self.make_ready(key);
    }

    /// A session begins: what is not acknowledged is said again.
    pub(crate) fn restart(&mut self) {
        let keys: Vec<AttemptKey> = self.attempts.keys().copied().collect();
        for key in keys {
            self.rewind(key);
        }
    }

    pub(crate) fn acked(&mut self, ack: &TaskAck) {
        let Some(output) = self.attempts.get_mut(&ack.key) else { return };
        for (stream, acked) in output.streams.iter_mut().zip([ack.stdout, ack.stderr]) {
            if acked > stream.acked {
                stream.acked = acked.min(stream.kept);
                stream.sent = stream.sent.max(stream.acked);
                output.resend = output.resend.map(|(_, _)| (Moment::NEVER, RESEND_MIN));
            }
        }
        self.make_ready(ack.key);
    }

    pub(crate) fn forget(&mut self, key: &AttemptKey) {
        self.attempts.remove(key);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Moment> {
        self.attempts.values().filter_map(|output| output.resend.map(|(at, _)| at)).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Moment) {
        let due = |output: &Output| output.resend.is_some_and(|(at, _)| at <= now);
        let due: Vec<AttemptKey> =
            self.attempts.iter().filter(|(_, output)| due(output)).map(|(key, _)| *key).collect();
        for key in due {
            self.rewind(key);
            if let Some(output) = self.attempts.get_mut(&key) {
                let wait = output.resend.map_or(RESEND_MIN, |(_, wait)| (wait * 2).min(RESEND_MAX));
                output.resend = Some((Moment::NEVER, wait));
            }
        }
    }

    /// As much as fits into a message; nothing if there is nothing to send.
    pub(crate) fn next_message(&mut self, now: Moment) -> Vec<TaskOutput> {
        let mut pieces = Vec::new();
        let mut room = MESSAGE_BYTES_MAX - 4 * PIECE_OVERHEAD_BYTES;
        while let Some(key) = self.ready.front().copied() {
            let Some(output) = self.attempts.get_mut(&key) else {
                self.ready.pop_front();
                continue;
            };
            let Some(piece) = output.next_piece(&self.folder, key) else {
                output.is_ready = false;
                self.ready.pop_front();
                continue;
            };
            // In JSON it is no longer than in base64.
            let length = piece.data.len().div_ceil(3) * 4 + PIECE_OVERHEAD_BYTES;
            if length > room && !pieces.is_empty() {
                break;
            }
            room = room.saturating_sub(length);
            output.advance(&piece, now);
            pieces.push(piece);
            // Everybody's turn.
            self.ready.rotate_left(1);
        }
        pieces
    }

    fn rewind(&mut self, key: AttemptKey) {
        if let Some(output) = self.attempts.get_mut(&key) {
            for stream in &mut output.streams {
                stream.sent = stream.acked;
            }
            output.resend = None;
        }
        self.make_ready(key);
    }

    fn make_ready(&mut self, key: AttemptKey) {
        if let Some(output) = self.attempts.get_mut(&key)
            && !std::mem::replace(&mut output.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }
}

impl Output {
    fn next_piece(&mut self, folder: &std::path::Path, key: AttemptKey) -> Option<TaskOutput> {
        let is_whole = self.is_whole;
        STREAMS.iter().zip(&mut self.streams).find_map(|(name, stream)| {
            let left = stream.kept - stream.sent;
            if left == 0 || stream.sent - stream.acked >= WINDOW_BYTES {
                return None;
            }
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(OUTPUT_CHUNK_BYTES_MAX);
            let mut data = vec![0; length];
            if stream.file.is_none() {
                stream.file = File::open(spool_path(folder, &key, *name)).ok();
            }
            let read = stream.file.as_ref().map(|file| file.read_exact_at(&mut data, stream.sent));
            let (offset, gap) = match read {
                Some(Ok(())) => {
                    let is_last = is_whole && left == length as u64;
                    data.truncate(if is_last { length } else { whole_characters(&data) });
                    (stream.sent, false)
                }
                // Lost with the disk: said so, or the end would be waited for in vain.
                _ => {
                    data.clear();
                    (stream.kept, true)
                }
            };
            Some(TaskOutput { key, stream: *name, offset, gap, data })
        })
    }

    fn advance(&mut self, piece: &TaskOutput, now: Moment) {
        let index = STREAMS.iter().position(|stream| *stream == piece.stream).unwrap_or_default();
        self.streams[index].sent = piece.offset + piece.data.len() as u64;
        let wait = self.resend.map_or(RESEND_MIN, |(_, wait)| wait);
        self.resend = Some((now + wait, wait));
    }
}

/// So many bytes that no character is cut in two, where this is text at all.
fn whole_characters(data: &[u8]) -> usize {
    match std::str::from_utf8(data) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => data.len(),
    }
}

#[cfg(test)]
mod tests {
    use rpicluster_protocol::{Epoch, JobId, TaskId};

    use super::*;

    const NOW: Moment = Moment::NEVER;

    fn key(index: u32) -> AttemptKey {
        AttemptKey { task: TaskId { job: JobId(1), index }, attempt: 1, epoch: Epoch(1) }
    }

    fn spooled(folder: &tempfile::TempDir, key: AttemptKey, bytes: &[u8]) {
        std::fs::write(spool_path(folder.path(), &key, Stream::Stdout), bytes).unwrap();
    }

    fn ack(key: AttemptKey, stdout: u64) -> TaskAck {
        TaskAck { key, seq: 1, stdout, stderr: 0 }
    }

    fn all(outputs: &mut Outputs) -> Vec<TaskOutput> {
        let mut pieces = Vec::new();
        loop {
            match outputs.next_message(NOW) {
                none if none.is_empty() => return pieces,
                some => pieces.extend(some),
            }
        }
    }

    #[test]
    fn pieces_follow_each_other_within_the_window_and_characters_stay_whole() {
        let folder = tempfile::tempdir().unwrap();
        let text = "aä".repeat(400_000);
        spooled(&folder, key(1), text.as_bytes());
        let mut outputs = Outputs::new(folder.path().to_owned());
        outputs.grow(key(1), [text.len() as u64, 0], true);
        let mut got = Vec::new();
        while got.len() < text.len() {
            let pieces = all(&mut outputs);
            assert!(!pieces.is_empty());
            for piece in pieces {
                assert_eq!(piece.offset, got.len() as u64);
                assert!(std::str::from_utf8(&piece.data).is_ok());
                got.extend(piece.data);
            }
            assert!(got.len() as u64 - outputs.attempts[&key(1)].streams[0].acked < WINDOW_BYTES + 50_000);
            outputs.acked(&ack(key(1), got.len() as u64));
        }
        assert_eq!(got, text.as_bytes());
    }

    #[test]
    fn what_is_not_acknowledged_is_said_again_and_what_is_lost_is_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        spooled(&folder, key(1), b"abcdef");
        let mut outputs = Outputs::new(folder.path().to_owned());
        outputs.grow(key(1), [6, 0], false);
        outputs.grow(key(2), [7, 0], true);
        let pieces = all(&mut outputs);
        assert_eq!((pieces[0].offset, pieces[0].data.as_slice(), pieces[0].gap), (0, &b"abcdef"[..], false));
        assert_eq!((pieces[1].offset, pieces[1].data.as_slice(), pieces[1].gap), (7, &b""[..], true));
        outputs.acked(&ack(key(1), 4));
        outputs.restart();
        let pieces = all(&mut outputs);
        assert!(pieces.iter().any(|piece| piece.offset == 4 && piece.data == b"ef"));
        outputs.forget(&key(1));
        outputs.acked(&ack(key(2), 7));
        outputs.restart();
        assert!(all(&mut outputs).is_empty());
    }

    #[test]
    fn many_small_pieces_share_a_message() {
        let folder = tempfile::tempdir().unwrap();
        let mut outputs = Outputs::new(folder.path().to_owned());
        for index in 0..50 {
            spooled(&folder, key(index), b"hello\n");
            outputs.grow(key(index), [6, 0], true);
        }
        let message = outputs.next_message(NOW);
        assert_eq!(message.len(), 50);
        let message = rpicluster_protocol::FromSlave::TaskOutput(message).into();
        assert!(rpicluster_protocol::encode_from_slave(&message).is_ok());
    }
}
