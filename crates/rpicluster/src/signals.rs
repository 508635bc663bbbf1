//! When to stop: a signal, or the end of standard input for children of the demo.

use std::future::Future;
use std::io::{self, Read};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::exit::Exit;

/// Completes at SIGTERM or SIGINT, or when standard input ends if that is asked for. A second signal ends the process at
/// once. Call it inside a runtime.
///
/// # Errors
/// If the signals cannot be watched.
pub(crate) fn shutdown(stop_on_stdin_close: bool) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut signals = Signals::new()?;
    let stdin = if stop_on_stdin_close { Some(stdin_closed()?) } else { None };
    Ok(async move {
        match stdin {
            None => {
                signals.next().await;
            }
            Some(stdin) => tokio::select! {
                _ = signals.next() => {}
                _ = stdin => {}
            },
        }
        // Not supervised: it ends with the process, or ends it.
        tokio::spawn(async move {
            signals.next().await;
            std::process::exit(i32::from(Exit::Failed.code()));
        });
    })
}

/// What tells a command that waits to stop waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interruption {
    /// Ctrl-C, SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// Tells `heard` of each interruption from now on, in a thread of its own, until it returns false.
///
/// # Errors
/// If the signals cannot be watched.
pub(crate) fn interruptions(heard: impl Fn(Interruption) -> bool + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let guard = runtime.enter();
    let mut signals = Signals::new()?;
    drop(guard);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async { while heard(signals.next().await) {} });
    })?;
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> Interruption {
        tokio::select! {
            _ = self.terminate.recv() => Interruption::Terminate,
            _ = self.interrupt.recv() => Interruption::Interrupt,
        }
    }
}

/// A thread of its own reads: nothing else in the process uses standard input.
fn stdin_closed() -> io::Result<oneshot::Receiver<()>> {
    let (closed, receiver) = oneshot::channel();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut ignored = [0; 64];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut ignored) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        // The receiver is gone if a signal came first.
        let _ = closed.send(());
    })?;
    Ok(receiver)
}
