//! How far a job is and when it may be done: arithmetic, and one line of text.

use std::time::Duration;

use rpicluster_protocol::TaskState;

use super::view::View;

/// Width of the bar, in characters.
const BAR: usize = 24;

/// How far a job is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// All tasks.
    pub(super) total: u32,
    /// Those that have ended.
    pub(super) done: u32,
    /// Those of them that have not succeeded.
    pub(super) failed: u32,
    /// Those that run.
    pub(super) running: u32,
}

impl Progress {
    /// How far a job is by what is known of it.
    pub(super) fn of(view: &View) -> Progress {
        let mut progress = Progress { total: view.job().map_or(0, |job| job.tasks), ..Progress::default() };
        for task in view.tasks() {
            progress.done += u32::from(task.state.has_ended());
            progress.failed += u32::from(task.state.has_ended() && task.state != TaskState::Succeeded);
            progress.running += u32::from(task.state == TaskState::Running);
        }
        progress
    }

    /// Tasks that end in a second, after `elapsed`; none before there is something to count.
    pub(super) fn rate(&self, elapsed: Duration) -> Option<f64> {
        let seconds = elapsed.as_secs_f64();
        (self.done > 0 && seconds > 0.0).then(|| f64::from(self.done) / seconds)
    }

    /// How long the rest takes at the rate so far.
    pub(super) fn remaining(&self, elapsed: Duration) -> Option<Duration> {
        let rest = f64::from(self.total.saturating_sub(self.done));
        Duration::try_from_secs_f64(rest / self.rate(elapsed)?).ok()
    }

    /// `[#####     ] 43 % 430/1000, 3 failed, 8 running, 12.3/s, 46 s left`
    pub(super) fn line(&self, elapsed: Duration) -> String {
        let part = |of: usize| match self.total {
            0 => 0,
            // At most `of`, which fits.
            total => (u64::from(self.done.min(total)) * of as u64 / u64::from(total)) as usize,
        };
        let mut line = format!("[{:<BAR$}] {} % {}/{}", "#".repeat(part(BAR)), part(100), self.done, self.total);
        if self.failed > 0 {
            line.push_str(&format!(", {} failed", self.failed));
        }
        if self.running > 0 {
            line.push_str(&format!(", {} running", self.running));
        }
        if let Some(rate) = self.rate(elapsed) {
            line.push_str(&format!(", {rate:.1}/s"));
        }
        if let Some(remaining) = self.remaining(elapsed).filter(|remaining| !remaining.is_zero()) {
            line.push_str(&format!(", {} left", left(remaining)));
        }
        line
    }
}

/// A duration of which only the order of magnitude matters.
fn left(remaining: Duration) -> String {
    match remaining.as_secs() {
        seconds @ 0..120 => format!("{} s", seconds.max(1)),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_remaining_time_follow_from_what_is_done() {
        let progress = Progress { total: 1000, done: 250, failed: 2, running: 8 };
        let elapsed = Duration::from_secs(10);
        assert_eq!(progress.rate(elapsed), Some(25.0));
        assert_eq!(progress.remaining(elapsed), Some(Duration::from_secs(30)));
        assert_eq!(
            progress.line(elapsed),
            "[######                  ] 25 % 250/1000, 2 failed, 8 running, 25.0/s, 30 s left"
        );
    }

    #[test]
    fn nothing_and_everything_can_be_shown() {
        assert_eq!(Progress::default().line(Duration::ZERO), format!("[{}] 0 % 0/0", " ".repeat(BAR)));
        let nothing = Progress { total: 5, ..Progress::default() };
        assert_eq!(nothing.rate(Duration::from_secs(1)), None);
        assert_eq!(nothing.remaining(Duration::from_secs(1)), None);
        let all = Progress { total: u32::MAX, done: u32::MAX, failed: 0, running: 0 };
        assert!(all.line(Duration::from_secs(1)).starts_with(&format!("[{}] 100 %", "#".repeat(BAR))));
        assert!(!all.line(Duration::from_secs(1)).contains("left"));
        assert_eq!(
            [1, 119, 120, 7199, 7260].map(|s| left(Duration::from_secs(s))),
            ["1 s", "119 s", "2 min", "119 min", "2 h 1 min"]
        );
    }
}
