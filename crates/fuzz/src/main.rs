//! `halfbyte-fuzz`: fuzzes targets for some time each, in a process of their own that may die.
//!
//! ```text
//! halfbyte-fuzz                                  all targets, two seconds each
//! halfbyte-fuzz --seconds 600 config pipeline    these two, ten minutes each
//! halfbyte-fuzz --replay config FILE             one input, judged
//! ```

// A tool of developers; what it has to say is for their terminal.
#![expect(clippy::print_stdout, reason = "figures and findings are its result")]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use halfbyte_fuzz::{Figures, Shared, fuzz, names, replay, scratch};

/// An execution that lasts longer is taken for one that never ends.
const ENDLESS: Duration = Duration::from_secs(20);
/// Deaths after which a target is given up.
const MOST_DEATHS: u64 = 6;

struct Options {
    seconds: f64,
    seed: u64,
    findings: PathBuf,
    targets: Vec<String>,
}

fn main() -> io::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options {
        seconds: 2.0,
        seed: 1,
        findings: std::env::temp_dir().join("halfbyte-findings"),
        targets: Vec::new(),
    };
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| wrong(&format!("{argument}: no value")))
        };
        match argument.as_str() {
            "--list" => {
                names().for_each(|name| println!("{name}"));
                return Ok(ExitCode::SUCCESS);
            }
            "--seconds" => {
                options.seconds = value()?
                    .parse()
                    .map_err(|_| wrong("--seconds: no number"))?
            }
            "--seed" => options.seed = value()?.parse().map_err(|_| wrong("--seed: no number"))?,
            "--findings" => options.findings = value()?.into(),
            "--replay" => return replayed(&value()?, Path::new(&value()?)),
            "--child" => {
                let (name, state) = (value()?, value()?);
                return child(&name, Path::new(&state), &options);
            }
            name => options.targets.push(name.to_owned()),
        }
    }
    if options.targets.is_empty() {
        options.targets = names().map(str::to_owned).collect();
    }
    let mut is_clean = true;
    let mut all = 0;
    for name in &options.targets {
        let (executions, clean) = target(name, &options)?;
        is_clean &= clean;
        all += executions;
    }
    println!("{all} executions in all");
    Ok(ExitCode::from(u8::from(!is_clean)))
}

/// Where inputs lie that were faults once.
fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn replayed(name: &str, path: &Path) -> io::Result<ExitCode> {
    let (said, judged) = replay(name, &std::fs::read(path)?)?;
    println!("{said}");
    match judged {
        None => Ok(ExitCode::SUCCESS),
        Some(judged) => {
            println!("{judged}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Runs in a process of its own.
fn child(name: &str, state: &Path, options: &Options) -> io::Result<ExitCode> {
    let shared = Shared::open(state)?;
    let time = Duration::from_secs_f64(options.seconds);
    let figures = fuzz(
        name,
        options.seed,
        time,
        &corpus(),
        &options.findings,
        Some(&shared),
    )?;
    let Figures {
        executions,
        kept,
        outcomes,
        blocks: (met, blocks),
        largest,
        slowest,
        findings,
    } = figures;
    for (judged, path) in &findings {
        finding(name, &judged.to_string(), path);
    }
    let of_blocks = match blocks {
        0 => String::new(),
        _ => format!(", {met} of {blocks} blocks"),
    };
    println!(
        "{name}: {executions} executions in {:.0} s, {outcomes} outcomes, {kept} inputs kept{of_blocks}, at most {:.1} MiB and \
         {:.0} ms, {} findings",
        options.seconds,
        largest as f64 / f64::from(1 << 20),
        slowest.as_secs_f64() * 1e3,
        findings.len()
    );
    Ok(ExitCode::from(u8::from(!findings.is_empty())))
}

fn finding(name: &str, what: &str, path: &Path) {
    println!(
        "{name}: {what}\n    cargo run --release -p halfbyte-fuzz -- --replay {name} {}",
        path.display()
    );
}

/// A target in as many processes as it takes; how many executions, and whether all went well.
fn target(name: &str, options: &Options) -> io::Result<(u64, bool)> {
    let folder = scratch();
    let (mut executions, mut clean) = (0, true);
    let began = Instant::now();
    for death in 0..MOST_DEATHS {
        let state = folder.path().join(format!("state-{death}"));
        let left = options.seconds - began.elapsed().as_secs_f64();
        if death > 0 && left <= 0.0 {
            break;
        }
        let shared = Shared::open(&state)?;
        let seed = options.seed + 1000 * death;
        let mut process = Command::new(std::env::current_exe()?)
            .args([
                "--seconds",
                &left.max(0.0).to_string(),
                "--seed",
                &seed.to_string(),
            ])
            .arg("--findings")
            .arg(&options.findings)
            .args(["--child", name])
            .arg(&state)
            .stderr(Stdio::null())
            .spawn()?;
        let end = watch(&mut process, &shared)?;
        let last = shared.read().unwrap_or_default();
        executions += last.executions;
        let what = match end {
            End::Exit(code) => {
                clean &= code == 0;
                break;
            }
            End::Signal(signal) => format!("the process died of signal {signal}"),
            End::Endless => format!("no end after {} s", ENDLESS.as_secs()),
        };
        clean = false;
        std::fs::create_dir_all(&options.findings)?;
        let path = options.findings.join(format!("{name}-death-{seed}"));
        std::fs::write(&path, &last.input)?;
        finding(name, &what, &path);
    }
    Ok((executions, clean))
}

enum End {
    Exit(i32),
    Signal(i32),
    Endless,
}

fn watch(process: &mut Child, shared: &Shared) -> io::Result<End> {
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(match (status.code(), status.signal()) {
                (Some(code), _) => End::Exit(code),
                (None, signal) => End::Signal(signal.unwrap_or_default()),
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_millis() as u64);
        if let Ok(state) = shared.read()
            && now.saturating_sub(state.began) > ENDLESS.as_millis() as u64
            && state.began > 0
        {
            process.kill()?;
            process.wait()?;
            return Ok(End::Endless);
        }
    }
}
