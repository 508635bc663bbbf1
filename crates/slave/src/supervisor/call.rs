//! How tasks find their workers.

use std::io::Read;

use rpicluster_core::Moment;
use rpicluster_protocol::AttemptKey;

use super::process::{Process, nothing};
use super::wire::{ATTEMPT_MARK, Bounds, Call, Cause, Ended, Start, name};
use super::worker::{Said, Worker};
use super::{Supervisor, feed, now};

impl Supervisor {
    /// Gives a task to a worker that has none, else to a new one, else it waits for the next to be free.
    pub(super) fn call(&mut self, call: Call) {
        let function = call.function.clone();
        let pool = self.pools.entry(function.clone()).or_default();
        pool.workers = call.workers;
        pool.waiting.push_back(call);
        self.hand_on(&function);
    }

    /// Hands on who waits for a function, as far as there are workers.
    pub(super) fn hand_on(&mut self, function: &str) {
        while let Some(pool) = self.pools.get_mut(function)
            && let Some(call) = pool.waiting.front()
        {
            let of_function =
                |process: &Process| process.worker.as_ref().is_some_and(|worker| worker.function == function);
            let is_idle = |process: &Process| {
                process.worker.as_ref().is_some_and(|worker| !worker.is_busy)
                    && process.ending.is_none()
                    && process.exited.is_none()
            };
            let mut of_pool = self.processes.iter().filter(|(_, process)| of_function(process));
            let idle = of_pool.clone().find(|(_, process)| is_idle(process)).map(|(number, _)| *number);
            let number = match idle {
                Some(number) => number,
                None if of_pool.by_ref().count() >= pool.workers as usize => return,
                None => {
                    let (start, bounds) = (a_worker(call, self.next_number), call.bounds.clone());
                    let mark = start.1;
                    match Process::start(start.0, mark, &mut self.folders, &self.spool, now()) {
                        Ok(mut process) => {
                            process.worker = Some(Worker::new(function.to_owned()));
                            self.watch(process)
                        }
                        Err(not_begun) => {
                            pool.waiting.pop_front();
                            self.report_end(not_begun.ended(&bounds));
                            continue;
                        }
                    }
                }
            };
            let call = self.pools.get_mut(function).and_then(|pool| pool.waiting.pop_front());
            if let Some((call, process)) = call.zip(self.processes.get_mut(&number)) {
                process.take_up(&call, &self.spool, now());
                self.numbers.insert(call.bounds.key, number);
                feed(process);
            }
        }
    }

    /// Takes what a worker has written.
    pub(super) fn hear_worker(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let Some(pipe) = &mut process.stdout else { return };
        let length = match pipe.read(&mut self.buffer) {
            Ok(0) => {
                process.stdout = None;
                return;
            }
            Ok(length) => length,
            // It is told again when there is something.
            Err(_) => return,
        };
        let key = process.bounds.key;
        let Some(worker) = process.worker.as_mut() else { return };
        let function = worker.function.clone();
        let mut answered = false;
        for said in worker.hear(&key, &self.buffer[..length]) {
            let is_busy = process.worker.as_ref().is_some_and(|worker| worker.is_busy);
            match said {
                // What nobody has asked for is nobody's.
                _ if !is_busy => {}
                Said::Output(bytes) => {
                    self.spool.write(&mut process.spooled[0], &bytes);
                    process.is_dirty = true;
                }
                // It is being killed for this task, and that is how it ends.
                Said::Answer(_) if process.ending.is_some() => {}
                Said::Answer(answer) => {
                    answered = true;
                    let ended = process.put_down(answer, now());
                    self.numbers.remove(&key);
                    super::push_end(&mut self.unsent, self.agent_gone, ended);
                }
            }
        }
        if answered {
            self.hand_on(&function);
        }
    }

    pub(super) fn waiting_call(&mut self, key: &AttemptKey) -> Option<&mut Call> {
        self.pools.values_mut().flat_map(|pool| &mut pool.waiting).find(|call| call.bounds.key == *key)
    }

    /// Ends a task that waits for a worker.
    pub(super) fn drop_call(&mut self, key: &AttemptKey, cause: Cause) {
        let mut found = None;
        for pool in self.pools.values_mut() {
            if let Some(index) = pool.waiting.iter().position(|call| call.bounds.key == *key) {
                found = pool.waiting.remove(index);
            }
        }
        if let Some(call) = found {
            self.report_end(Ended { cause: Some(cause), ..nothing(&call.bounds) });
        }
    }

    /// Ends tasks that have waited for a worker until the end of their lease.
    pub(super) fn judge_calls(&mut self, now: Moment) {
        let calls = self.pools.values().flat_map(|pool| &pool.waiting);
        let over = calls.filter(|call| Moment::from_millis(call.bounds.lease_end_ms) <= now);
        for key in over.map(|call| call.bounds.key).collect::<Vec<_>>() {
            self.drop_call(&key, Cause::LeaseOver);
        }
    }
}

/// How a worker for a task is started, and its mark.
fn a_worker(call: &Call, number: u64) -> (Start, String) {
    let mark = format!("{}-worker-{number}-{}", call.function, name(&call.bounds.key));
    let mut program = call.program.clone();
    program.env.push((ATTEMPT_MARK.to_owned(), mark.clone()));
    let bounds = Bounds { timeout_ms: None, lease_end_ms: Moment::NEVER.as_millis(), ..call.bounds.clone() };
    let start =
        Start { bounds, program, stdin: Some(String::new()), script: None, after_script: Vec::new(), answers: false };
    (start, mark)
}
