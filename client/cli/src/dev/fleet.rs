//! The processes of a service: started, watched, started again, stopped. None outlives this one: the kernel kills them when
//! this process is gone, and each looks after it itself as well.

use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use lockstep_api::ReplicatedService;
use lockstep_client::{AdminClient, ReplicaStatus, Role};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use super::folder::Folder;
use crate::CliError;

/// Between two looks at what all replicas say.
const LOOK: Duration = Duration::from_millis(20);
/// A replica on this machine answers this fast, or is gone.
const ANSWER: Duration = Duration::from_millis(500);
/// How long replicas may take to stop.
const STOP: Duration = Duration::from_secs(5);
/// Pauses before a replica that does not stay up is started again: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// One that was up for this long stayed up.
const STAYED: Duration = Duration::from_secs(10);
/// Bytes of one file of the log: small, since a laptop has no volume of its own for each replica.
const SEGMENT_BYTES: u64 = 16 << 20;

/// Why the service does not run any more.
#[derive(Debug)]
pub enum Ended {
    /// By Ctrl-C or a signal.
    Interrupted,
    /// Something is wrong.
    Failed(CliError),
}

impl From<CliError> for Ended {
    fn from(error: CliError) -> Self {
        Ended::Failed(error)
    }
}

/// Ports of all replicas on the loopback interface.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    base: u16,
    replicas: usize,
}

impl Ports {
    const STEP: usize = 10;
    const KINDS: usize = 3;

    pub fn of(base: u16, replicas: usize) -> Result<Self, String> {
        let last = usize::from(base) + (replicas.max(1) - 1) * Self::STEP + Self::KINDS - 1;
        if base == 0 || last > usize::from(u16::MAX) {
            return Err(format!(
                "--port-base {base}: {replicas} replicas need ports {base} to {last}; choose 1 to 65400"
            ));
        }
        Ok(Ports { base, replicas })
    }

    fn address(self, index: usize, kind: usize) -> SocketAddr {
        let port = usize::from(self.base) + index * Self::STEP + kind;
        SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port).expect("checked when made")))
    }

    pub fn client(self, index: usize) -> SocketAddr {
        self.address(index, 0)
    }

    pub fn peer(self, index: usize) -> SocketAddr {
        self.address(index, 1)
    }

    pub fn metrics(self, index: usize) -> SocketAddr {
        self.address(index, 2)
    }

    /// Names the first port that another process has.
    pub fn check_free(self) -> Result<(), String> {
        for index in 0..self.replicas {
            for kind in 0..Self::KINDS {
                let address = self.address(index, kind);
                if let Err(error) = TcpListener::bind(address) {
                    let why = match error.kind() {
                        io::ErrorKind::AddrInUse => "is in use".to_owned(),
                        _ => format!("cannot be had ({error})"),
                    };
                    return Err(format!(
                        "port {} on {} {why}; stop what uses it, or choose other ports with --port-base",
                        address.port(),
                        address.ip()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// All replicas of the service.
pub struct Fleet {
    replicas: Vec<Replica>,
    ports: Ports,
    /// A replica that ends while the service starts is an error.
    starting: bool,
    signals: Signals,
}

struct Replica {
    admin: AdminClient,
    options: Vec<String>,
    log: PathBuf,
    process: Process,
    /// Starts in a row after which it did not stay up.
    failures: u32,
    killed: Killed,
}

/// Whether a replica was killed on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Killed {
    No,
    /// And stays down until it is let up.
    Down,
    /// And is started again without a word.
    Up,
}

enum Process {
    Runs { child: Child, since: Instant },
    Waits { until: Instant },
    Down,
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

impl Fleet {
    /// Starts all replicas. Must be called on the main thread: the kernel kills the replicas when the thread that started
    /// them is gone.
    pub fn start(folder: &Folder, service: &ReplicatedService, ports: Ports) -> Result<Self, CliError> {
        let failed = |error| CliError::Failed(format!("failed to read the admin token: {error}"));
        let token = folder.token().map_err(failed)?;
        let signals =
            Signals::new().map_err(|error| CliError::Failed(format!("failed to listen for signals: {error}")))?;
        let peers: Vec<String> = (0..ports.replicas).map(|index| ports.peer(index).to_string()).collect();
        let retain = service.spec.snapshots.retain_log().map_err(CliError::Usage)?;
        let mut replicas = Vec::new();
        for index in 0..ports.replicas {
            let options = vec![
                format!("--data-dir={}", folder.data(index).display()),
                format!("--client-listen={}", ports.client(index)),
                format!("--peer-listen={}", ports.peer(index)),
                format!("--metrics-listen={}", ports.metrics(index)),
                format!("--peers={}", peers.join(",")),
                format!("--admin-token-file={}", folder.token_file().display()),
                format!("--log-level={}", service.spec.log_level.as_deref().unwrap_or("info")),
                format!("--segment-bytes={SEGMENT_BYTES}"),
                format!("--retain-bytes={retain}"),
                format!("--parent-pid={}", std::process::id()),
            ];
            let log = folder.log(index);
            let admin =
                AdminClient::connect(&ports.client(index).to_string(), Some(&token)).map_err(CliError::failed)?;
            let process = spawn(&options, &log)?;
            replicas.push(Replica {
                admin: admin.with_timeout(ANSWER),
                options,
                log,
                process,
                failures: 0,
                killed: Killed::No,
            });
        }
        Ok(Fleet { replicas, ports, starting: true, signals })
    }

    pub fn len(&self) -> usize {
        self.replicas.len()
    }

    pub fn ports(&self) -> Ports {
        self.ports
    }

    pub fn log(&self, index: usize) -> &Path {
        &self.replicas[index].log
    }

    /// Admin calls to one replica, with time for a disk that is slow.
    pub fn admin(&self, index: usize) -> AdminClient {
        self.replicas[index].admin.clone().with_timeout(super::PATIENCE)
    }

    fn admins(&self) -> Vec<AdminClient> {
        self.replicas.iter().map(|replica| replica.admin.clone()).collect()
    }

    /// Waits until each replica says who it is.
    pub async fn first_answers(&mut self) -> Result<Vec<ReplicaStatus>, Ended> {
        let admins = self.admins();
        let answers = async {
            loop {
                let answers = ask(&admins).await;
                if answers.iter().all(Option::is_some) {
                    return answers.into_iter().flatten().collect();
                }
                sleep(LOOK).await;
            }
        };
        self.within(super::PATIENCE, "the replicas to answer", answers).await
    }

    /// Waits until a replica leads that may serve.
    pub async fn leader(&mut self, patience: Duration) -> Result<usize, Ended> {
        let admins = self.admins();
        let found = async {
            loop {
                if let Some((index, _)) = leads(&ask(&admins).await) {
                    return index;
                }
                sleep(LOOK).await;
            }
        };
        let leader = self.within(patience, "a leader", found).await?;
        self.starting = false;
        Ok(leader)
    }

    /// Waits until all replicas are ready; gives what they say.
    pub async fn all_ready(&mut self, patience: Duration) -> Result<Vec<ReplicaStatus>, Ended> {
        let admins = self.admins();
        let found = async {
            loop {
                let answers: Vec<ReplicaStatus> = ask(&admins).await.into_iter().flatten().collect();
                if answers.len() == admins.len() && answers.iter().all(ReplicaStatus::is_ready) {
                    return answers;
                }
                sleep(LOOK).await;
            }
        };
        self.within(patience, "all replicas to be ready", found).await
    }

    /// Waits until another start leads than the one that said `before`.
    pub async fn next_leader(&mut self, before: &ReplicaStatus, patience: Duration) -> Result<usize, Ended> {
        let admins = self.admins();
        let found = async {
            loop {
                let answers = ask(&admins).await;
                match leads(&answers) {
                    Some((index, leader)) if (leader.replica, leader.boot) != (before.replica, before.boot) => {
                        return index;
                    }
                    Some(_) | None => sleep(LOOK / 2).await,
                }
            }
        };
        self.within(patience, "another leader", found).await
    }

    /// As `kill -9`. It stays down until it is let up.
    pub fn kill(&mut self, index: usize) -> Result<(), Ended> {
        let replica = &mut self.replicas[index];
        if let Process::Runs { child, .. } = &mut replica.process {
            replica.killed = Killed::Down;
            child.start_kill().map_err(|error| CliError::Failed(format!("failed to kill r{}: {error}", index + 1)))?;
        }
        Ok(())
    }

    /// Starts a replica that was killed.
    pub fn let_up(&mut self, index: usize) -> Result<(), Ended> {
        let replica = &mut self.replicas[index];
        match replica.process {
            Process::Down => {
                replica.killed = Killed::No;
                replica.process = spawn(&replica.options, &replica.log)?;
            }
            // Its end was not noticed yet.
            Process::Runs { .. } if replica.killed == Killed::Down => replica.killed = Killed::Up,
            Process::Runs { .. } | Process::Waits { .. } => {}
        }
        Ok(())
    }

    /// Watches until it is interrupted, and says who leads whenever that changes.
    pub async fn watch(&mut self) -> Result<(), Ended> {
        let admins = self.admins();
        let telling = async {
            let mut told = leads(&ask(&admins).await).map(|(index, _)| index);
            loop {
                sleep(Duration::from_millis(200)).await;
                if let Some((index, leader)) = leads(&ask(&admins).await)
                    && told != Some(index)
                {
                    println!("r{} leads view {}", index + 1, leader.view);
                    told = Some(index);
                }
            }
        };
        self.during(telling).await
    }

    async fn within<T>(&mut self, patience: Duration, what: &str, work: impl Future<Output = T>) -> Result<T, Ended> {
        match self.during(timeout(patience, work)).await? {
            Ok(done) => Ok(done),
            Err(_) => {
                let said: Vec<String> = (1..)
                    .zip(ask(&self.admins()).await)
                    .map(|(number, answer)| match answer {
                        None => format!("r{number} does not answer"),
                        Some(status) => match status.not_ready {
                            None => format!("r{number} is ready"),
                            Some(reason) => format!("r{number} {reason}"),
                        },
                    })
                    .collect();
                Err(CliError::Failed(format!("waited {patience:?} for {what}: {}", said.join(", "))).into())
            }
        }
    }

    /// Watches the processes until `work` is done.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Ended> {
        let mut work = pin!(work);
        loop {
            let next_start = self.next_start();
            let ended = {
                let Fleet { replicas, signals, .. } = self;
                tokio::select! {
                    done = &mut work => return Ok(done),
                    () = signals.next() => return Err(Ended::Interrupted),
                    ended = exit(replicas) => Some(ended),
                    () = sleep_until(next_start.unwrap_or_else(Instant::now).into()), if next_start.is_some() => None,
                }
            };
            match ended {
                Some((index, status)) => self.ended(index, status)?,
                None => self.start_due()?,
            }
        }
    }

    fn next_start(&self) -> Option<Instant> {
        let due = |replica: &Replica| match replica.process {
            Process::Waits { until } => Some(until),
            Process::Runs { .. } | Process::Down => None,
        };
        self.replicas.iter().filter_map(due).min()
    }

    fn ended(&mut self, index: usize, status: io::Result<ExitStatus>) -> Result<(), Ended> {
        let name = format!("r{}", index + 1);
        let status = status.map_err(|error| CliError::Failed(format!("failed to watch {name}: {error}")))?;
        let replica = &mut self.replicas[index];
        let said = last_line(&replica.log);
        if self.starting {
            return Err(CliError::Failed(format!("{name} did not start: {said}")).into());
        }
        match std::mem::replace(&mut replica.killed, Killed::No) {
            Killed::Down => {
                replica.process = Process::Down;
                return Ok(());
            }
            Killed::Up => replica.failures = 0,
            Killed::No => {
                let stayed = matches!(&replica.process, Process::Runs { since, .. } if since.elapsed() >= STAYED);
                replica.failures = if stayed { 0 } else { replica.failures + 1 };
                let last =
                    if status.code().is_some_and(|code| code != 0) { format!(": {said}") } else { String::new() };
                println!("{name} ended ({status}){last}; starting it again");
            }
        }
        let pause = match replica.failures {
            0 => Duration::ZERO,
            failures => (PAUSE_MIN * 2_u32.saturating_pow(failures - 1)).min(PAUSE_MAX),
        };
        replica.process = Process::Waits { until: Instant::now() + pause };
        self.start_due()
    }

    fn start_due(&mut self) -> Result<(), Ended> {
        for replica in &mut self.replicas {
            if matches!(replica.process, Process::Waits { until } if until <= Instant::now()) {
                replica.process = spawn(&replica.options, &replica.log)?;
            }
        }
        Ok(())
    }

    /// Tells all replicas to stop, and kills those that take too long.
    pub async fn stop(mut self) {
        for replica in &self.replicas {
            if let Process::Runs { child, .. } = &replica.process
                && let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
            {
                // One that ended just now is as good as stopped.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let all = async {
            for replica in &mut self.replicas {
                if let Process::Runs { child, .. } = &mut replica.process {
                    let _ = child.wait().await;
                }
            }
        };
        if timeout(STOP, all).await.is_err() {
            for replica in &mut self.replicas {
                if let Process::Runs { child, .. } = &mut replica.process {
                    let _ = child.kill().await;
                }
            }
        }
    }
}

/// The next process that ends.
async fn exit(replicas: &mut [Replica]) -> (usize, io::Result<ExitStatus>) {
    poll_fn(|cx| {
        for (index, replica) in replicas.iter_mut().enumerate() {
            if let Process::Runs { child, .. } = &mut replica.process
                && let Poll::Ready(status) = pin!(child.wait()).poll(cx)
            {
                return Poll::Ready((index, status));
            }
        }
        Poll::Pending
    })
    .await
}

fn spawn(options: &[String], log: &Path) -> Result<Process, CliError> {
    let failed = |what: String| move |error: io::Error| CliError::Failed(format!("failed to {what}: {error}"));
    // What runs now, also after the file was built anew.
    let program = if cfg!(target_os = "linux") {
        PathBuf::from("/proc/self/exe")
    } else {
        std::env::current_exe().map_err(failed("find this program".to_owned()))?
    };
    let file = fs::File::options().create(true).append(true).open(log);
    let file = file.map_err(failed(format!("write to {}", log.display())))?;
    let mut command = Command::new(program);
    command.arg0("lockstep").arg("replica").args(options);
    for (name, _) in std::env::vars_os() {
        // Options of this command must not become options of replicas.
        if name.to_string_lossy().starts_with("LOCKSTEP_") {
            command.env_remove(name);
        }
    }
    // A group of their own, so that Ctrl-C comes here and replicas are stopped in order.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).process_group(0).kill_on_drop(true);
    let child = command.spawn().map_err(failed("start a replica".to_owned()))?;
    Ok(Process::Runs { child, since: Instant::now() })
}

/// What each replica says, if it answers.
async fn ask(admins: &[AdminClient]) -> Vec<Option<ReplicaStatus>> {
    let mut asking = JoinSet::new();
    for (index, admin) in admins.iter().cloned().enumerate() {
        asking.spawn(async move { (index, admin.status().await.ok()) });
    }
    let mut answers = vec![None; admins.len()];
    while let Some(Ok((index, answer))) = asking.join_next().await {
        answers[index] = answer;
    }
    answers
}

/// The replica that leads the highest view and may serve.
fn leads(answers: &[Option<ReplicaStatus>]) -> Option<(usize, &ReplicaStatus)> {
    let answered = answers.iter().enumerate().filter_map(|(index, answer)| Some((index, answer.as_ref()?)));
    answered
        .filter(|(_, status)| status.role == Role::Leader && status.is_ready())
        .max_by_key(|(_, status)| status.view)
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    line.trim_start_matches("lockstep replica: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_beyond_the_last_one_are_refused() {
        assert_eq!(
            Ports::of(65530, 3).unwrap_err(),
            "--port-base 65530: 3 replicas need ports 65530 to 65552; choose 1 to 65400"
        );
        assert_eq!(Ports::of(7400, 3).unwrap().metrics(2).port(), 7422);
    }

    #[test]
    fn ports_in_use_are_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = Ports { base: port, replicas: 1 }.check_free().unwrap_err();
        assert!(refused.starts_with(&format!("port {port} on 127.0.0.1 is in use; stop what uses it")), "{refused}");
    }
}
