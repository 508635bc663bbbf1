//! Tools that others use for tasks, beside ours: those that are installed.
//!
//! None of them makes anything safe on a disk, neither what is to be run nor how it ended: compare with that in mind.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::figure::{Figures, median};
use crate::peers::{Process, free_port, wait_until};
use crate::tasks::{COMMANDS, ROUNDS, SINGLE, SLAVES};

/// The measurements of those in Python: `with_*.py`, and what they share.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");

/// What each tool is asked to do with 8 workers. A round each; empty where it knows of no such thing.
pub(crate) struct Measured {
    /// Calls of a function a second.
    pub(crate) function: Vec<f64>,
    /// `/bin/true` a second.
    pub(crate) exec: Vec<f64>,
    /// One task that does nothing, from asked to known, in milliseconds.
    pub(crate) one: Vec<f64>,
    /// `/bin/true` by all workers, in milliseconds.
    pub(crate) all: Vec<f64>,
}

/// A tool, by the name and version that it is shown with.
struct Tool {
    name: String,
    measured: Measured,
}

/// Measures them, each in rows of its own.
pub(crate) fn measure(figures: &mut Figures, ours: &Measured) {
    show(figures, ours, "GNU parallel", parallel());
    show(figures, ours, "Dask", python("Dask", "distributed", "with_dask.py"));
    show(figures, ours, "Celery with Redis", celery());
    show(figures, ours, "Ray", python("Ray", "ray", "with_ray.py"));
}

/// One that fails is left out and said so, as it is no figure of ours.
fn show(figures: &mut Figures, ours: &Measured, name: &str, tool: Result<Option<Tool>>) {
    const EXEC: &str = "exec /bin/true, a slot each";
    match tool {
        Ok(Some(Tool { name, measured })) => {
            for (figure, unit, ours, theirs) in [
                ("warm Python function", "1/s", &ours.function, &measured.function),
                (EXEC, "1/s", &ours.exec, &measured.exec),
                ("one task, submitted to known, p50", "ms", &ours.one, &measured.one),
                ("true on 8, submitted to known, p50", "ms", &ours.all, &measured.all),
            ] {
                if !theirs.is_empty() {
                    figures.add(figure, unit, ours, Some((&name, theirs)));
                }
            }
        }
        Ok(None) => figures.add_alone(EXEC, "1/s", &ours.exec, name),
        Err(error) => eprintln!("{name}: no figure: {error:#}"),
    }
}

/// `/bin/true` a second by a program that runs a command for each line that it reads.
pub(crate) fn commands_per_second(program: &mut Command) -> Result<f64> {
    let seconds = run_for_lines(program, COMMANDS)?;
    Ok(COMMANDS as f64 / seconds)
}

fn run_for_lines(program: &mut Command, count: usize) -> Result<f64> {
    let began = Instant::now();
    let mut child = program.stdin(Stdio::piped()).spawn().with_context(|| format!("start {program:?}"))?;
    let lines: String = (0..count).map(|number| format!("{number}\n")).collect();
    child.stdin.take().context("standard input")?.write_all(lines.as_bytes())?;
    ensure!(child.wait()?.success(), "{program:?} failed");
    Ok(began.elapsed().as_secs_f64())
}

/// Its one task is a whole run of it: it is no service that waits for work.
fn parallel() -> Result<Option<Tool>> {
    /// Each takes a tenth of a second or two.
    const RUNS: usize = 20;
    // Another program of this name is in moreutils.
    let Ok(output) = Command::new("parallel").arg("--version").output() else { return Ok(None) };
    let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
    let Some(version) = version.strip_prefix("GNU parallel ") else { return Ok(None) };
    let command = || {
        let mut command = Command::new("parallel");
        command.args(["--will-cite", "-j8", "/bin/true"]);
        command
    };
    let latency = |count| -> Result<Vec<f64>> {
        let run = || Ok(1e3 * run_for_lines(&mut command(), count)?);
        (0..ROUNDS).map(|_| Ok(median(&(0..RUNS).map(|_| run()).collect::<Result<Vec<f64>>>()?))).collect()
    };
    let measured = Measured {
        function: Vec::new(),
        exec: (0..ROUNDS).map(|_| commands_per_second(&mut command())).collect::<Result<_>>()?,
        one: latency(1)?,
        all: latency(SLAVES)?,
    };
    Ok(Some(Tool { name: format!("GNU parallel {version}"), measured }))
}

/// A worker of 8 processes and a redis-server that keeps nothing on disk.
fn celery() -> Result<Option<Tool>> {
    let found = Command::new("redis-server").arg("--version").output().is_ok();
    if !found || !has_module("celery") || !has_module("redis") {
        return Ok(None);
    }
    let (folder, port) = (tempfile::tempdir()?, free_port()?);
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]).arg(folder.path());
    let _redis = Process::start(&mut command, folder)?;
    wait_until("redis-server listens", || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()))?;
    let url = format!("redis://127.0.0.1:{port}/0");
    let mut command = script(&["-m", "celery", "-A", "with_celery", "worker", "--concurrency", &SLAVES.to_string()]);
    let _worker = Process::start(command.env("BENCH_REDIS", &url), tempfile::tempdir()?)?;
    answer("Celery with Redis", script(&["with_celery.py"]).env("BENCH_REDIS", &url)).map(Some)
}

/// A tool that its script starts, if there is its module.
fn python(name: &str, module: &str, file: &str) -> Result<Option<Tool>> {
    if has_module(module) { answer(name, &mut script(&[file])).map(Some) } else { Ok(None) }
}

fn has_module(module: &str) -> bool {
    script(&["-c", &format!("import {module}")]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The Python that `BENCH_PYTHON` names, else that of the system, told what to measure.
fn script(arguments: &[&str]) -> Command {
    let python = std::env::var_os("BENCH_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command
        .args(arguments)
        .current_dir(Path::new(SCRIPTS))
        .env("BENCH_SIZES", format!("{SLAVES} {ROUNDS} {COMMANDS} {SINGLE}"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Runs a script to its end; the last line that it prints is what it measured. What it writes beside goes.
fn answer(name: &str, command: &mut Command) -> Result<Tool> {
    let folder = tempfile::tempdir()?;
    let output = command.env("TMPDIR", folder.path()).env("RAY_TMPDIR", folder.path()).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", complaint.lines().last().unwrap_or("it failed"));
    let text = String::from_utf8(output.stdout)?;
    let answer: Value = serde_json::from_str(text.lines().last().context("an answer")?)?;
    let rounds = |what: &str| -> Result<Vec<f64>> { Ok(serde_json::from_value(answer[what].clone())?) };
    let measured =
        Measured { function: rounds("function")?, exec: rounds("exec")?, one: rounds("one")?, all: rounds("all")? };
    let version = answer["version"].as_str().context("a version")?;
    Ok(Tool { name: format!("{name} {version}"), measured })
}
