//! One start of a replica: from the data directory to the signal that ends it.
//!
//! In order: options, ports, data directory, identity; then everything is served, and the log is read. A replica without
//! genesis stays like that, live and not ready, until it gets one.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockstep_consensus::RoleName;
use lockstep_engine::{Engine, EngineOptions, Identity, IdentityError, Status};
use lockstep_machine::KeyValueWithFaults;
use lockstep_types::{Digest, Genesis, Slot};
use lockstep_wal::FileDisk;
use lockstep_wire::v1::refusal::Reason;
use lockstep_wire::{Leader, Refusal};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::args::Args;
use crate::clock::Clock;
use crate::core::{self, CoreHandle, Parts, Threads, Urgent};
use crate::error::RunError;
use crate::listen;
use crate::metrics::Metrics;
use crate::peers::{Addresses, Peers};
use crate::servers::Servers;
use crate::signals::{Signals, follow_parent};

/// How long a leader that is told to stop waits for another one.
const HAND_OVER: Duration = Duration::from_secs(2);
/// Between two looks whether there is anybody.
const LOOK: Duration = Duration::from_millis(20);

/// What all services share.
pub(crate) struct Process {
    pub args: Args,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub client_address: String,
    token: Token,
    disk: Arc<FileDisk>,
    /// Locked while a genesis is taken on.
    identity: Mutex<Identity>,
    /// As it was at the start: replica and boot never change.
    pub born: Identity,
    running: OnceLock<Running>,
    /// Whether `running` is set.
    pub started: watch::Sender<bool>,
    pub stage: watch::Sender<Stage>,
    fatal: mpsc::Sender<RunError>,
    /// Where the core thread says that this replica must retire.
    retiring: mpsc::UnboundedSender<String>,
}

/// A replica whose service is born and whose log is read.
pub(crate) struct Running {
    pub core: CoreHandle,
    pub peers: Arc<Peers>,
    pub genesis: Genesis,
    threads: std::sync::Mutex<Option<Threads>>,
}

/// How far the process is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Serves.
    Up,
    /// Told to stop: not ready any more, hands over, still serves.
    Leaving,
    /// Takes no more requests; answers those that it has.
    Draining,
    /// Peers are not heard any more either.
    Stopped,
}

enum Token {
    None,
    Value(String),
    File(PathBuf),
}

pub(crate) async fn run(args: Args) -> Result<(), RunError> {
    args.check()?;
    follow_parent(&args)?;
    let mut signals = Signals::new()?;
    let token = Token::of(&args)?;
    let clients = listen::bind("clients", args.client_listen, "--client-listen").await?;
    let peers = listen::bind("peers", args.peer_listen, "--peer-listen").await?;
    let scrapes = listen::bind("metrics", args.metrics_listen, "--metrics-listen").await?;

    let dir = args.data_dir.clone();
    let (disk, born) = blocking(move || {
        let disk = Arc::new(FileDisk::open(&dir)?);
        let identity = Identity::start(&*disk, rand::random())?;
        Ok::<_, RunError>((disk, identity))
    })
    .await?;

    let bound = clients.local_addr().map_err(system("look at a socket"))?;
    tracing::info!(
        "replica {} starts for the {}. time: clients on {bound}, data in {}",
        born.replica,
        born.boot,
        args.data_dir.display()
    );
    let (fatal, mut failures) = mpsc::channel(1);
    let (retiring, mut found_out) = mpsc::unbounded_channel();
    let process = Arc::new(Process {
        clock: Clock::start(),
        metrics: Arc::new(Metrics::new()),
        client_address: args.client_address(bound),
        token,
        disk,
        identity: Mutex::new(born.clone()),
        born,
        running: OnceLock::new(),
        started: watch::channel(false).0,
        stage: watch::channel(Stage::Up).0,
        fatal,
        retiring,
        args,
    });
    let servers = Servers::start(&process, clients, peers, scrapes);

    let starting = Arc::clone(&process);
    tokio::spawn(async move {
        let identity = starting.identity.lock().await;
        if let Err(retired) = identity.check_fit() {
            tracing::error!("{retired}");
            return;
        }
        match &identity.genesis {
            None => tracing::info!("no genesis yet: waiting for one"),
            Some(_) => starting.report(starting.start_engine(&identity).await).await,
        }
    });

    tokio::select! {
        () = signals.next() => {
            process.leave(&mut signals).await;
            servers.close(&process).await;
            Ok(())
        }
        error = failures.recv() => Err(error.expect("the process holds a sender")),
        why = found_out.recv() => Err(process.retired(why.expect("the process holds a sender")).await),
    }
}

impl Process {
    /// Once the service is born and the log is read.
    pub fn running(&self) -> Option<&Running> {
        self.running.get()
    }

    /// How far the process is from its end.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Returns when this stage is reached.
    pub fn reached(&self, stage: Stage) -> impl Future<Output = ()> + Send + 'static {
        let mut stages = self.stage.subscribe();
        async move {
            // The sender lives as long as the process.
            let _ = stages.wait_for(|now| *now >= stage).await;
        }
    }

    /// Returns when nothing is served any more.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.reached(Stage::Stopped)
    }

    /// What the engine said last; none before genesis.
    pub fn last_status(&self) -> Option<Status> {
        self.running().map(|running| running.core.status.borrow().clone())
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<Leader> {
        let running = self.running()?;
        let leader = running.core.status.borrow().leader?;
        running.peers.locate(leader)
    }

    /// A refusal that came before the engine: this attempt reached no log.
    pub fn refuse(&self, reason: Reason, message: String) -> Refusal {
        Refusal { reason, message, never_proposed: true, leader: self.leader() }
    }

    /// Whether this is the service's token, compared in constant time.
    pub async fn is_admin(&self, given: &str) -> Result<bool, String> {
        let expected = match &self.token {
            Token::None => return Err("this replica has no admin token; start it with --admin-token-file".to_owned()),
            Token::Value(token) => token.clone(),
            Token::File(path) => tokio::fs::read_to_string(path).await.map_err(|error| {
                format!("this replica cannot read its admin token from {}: {error}", path.display())
            })?,
        };
        let expected = expected.trim();
        // Digests have one length, whatever was given.
        let (given, ours) = (Digest::of(given.trim().as_bytes()), Digest::of(expected.as_bytes()));
        let differ = given.as_bytes().iter().zip(ours.as_bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
        Ok(!expected.is_empty() && differ == 0)
    }

    /// Takes a genesis on as one of its voters and starts the engine. False if it was there already.
    pub async fn adopt(self: &Arc<Self>, genesis: Genesis) -> Result<bool, IdentityError> {
        self.become_member(move |identity, disk| identity.adopt(genesis, disk)).await
    }

    /// Joins a service in the slot that was given to this replica, and starts the engine. False if it had already.
    pub async fn join(self: &Arc<Self>, genesis: Genesis, slot: Slot) -> Result<bool, IdentityError> {
        self.become_member(move |identity, disk| identity.join(genesis, slot, disk)).await
    }

    /// To its end, even if nobody waits for it any more: a caller that dies in between, and its call with it, would else leave an
    /// identity that belongs to a service and an engine that nobody can reach.
    async fn become_member(
        self: &Arc<Self>,
        how: impl FnOnce(&mut Identity, &FileDisk) -> Result<bool, IdentityError> + Send + 'static,
    ) -> Result<bool, IdentityError> {
        let process = Arc::clone(self);
        let became = tokio::spawn(async move {
            let mut identity = process.identity.lock().await;
            let disk = Arc::clone(&process.disk);
            let mut next = identity.clone();
            let (became, next) = blocking(move || (how(&mut next, &disk), next)).await;
            *identity = next;
            let created = became?;
            if process.running().is_none() {
                process.report(process.start_engine(&identity).await).await;
            }
            Ok(created)
        });
        match became.await {
            Ok(became) => became,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// What is on record, also while the log is still being read.
    pub async fn genesis(&self) -> Option<Genesis> {
        match self.running() {
            Some(running) => Some(running.genesis.clone()),
            // While the log is read the identity is locked, and what it was at the start holds.
            None => match self.identity.try_lock() {
                Ok(identity) => identity.genesis.clone(),
                Err(_) => self.born.genesis.clone(),
            },
        }
    }

    /// Reads the log and starts the threads and the streams to peers.
    async fn start_engine(&self, identity: &Identity) -> Result<(), RunError> {
        let no_member = lockstep_engine::StartError::NoMember { replica: identity.replica };
        let (Some(genesis), Some(slot)) = (identity.genesis.clone(), identity.slot) else {
            return Err(no_member.into());
        };
        let peer = self.args.advertise_peer.clone().unwrap_or_default();
        let addresses = Addresses { client: self.client_address.clone(), peer };
        let wal = lockstep_wal::Options { segment_bytes: self.args.segment_bytes };
        let snapshots = self.args.snapshots();
        let options = EngineOptions { rules: self.args.rules(), wal, snapshots, ..EngineOptions::default() };
        let (disk, copy, clock) = (Arc::clone(&self.disk), identity.clone(), self.clock);
        let (metrics, max_queued_bytes) = (Arc::clone(&self.metrics), self.args.max_queued_bytes);
        let (retire, born) = (self.retiring.clone(), genesis.clone());
        let (peers, core, threads) = blocking(move || {
            KeyValueWithFaults::name_this_process(slot.to_string());
            let engine = Engine::start(Arc::clone(&disk), &copy, options, clock.now())?;
            let status = engine.status(clock.now());
            tracing::info!("{} of service {}: log up to height {}", status.slot, genesis_of(&copy), status.head);
            if let Some(trouble) = &status.snapshots.trouble {
                tracing::warn!("snapshots: {trouble}");
            }
            let me = (copy.replica, slot, engine.claim());
            let first = born.configuration();
            let peers = Arc::new(Peers::new(born.service, me, first, addresses, Arc::clone(&metrics)));
            let others = Arc::clone(&peers);
            let (core, threads) =
                core::start(Parts { engine, disk, clock, peers: others, metrics, max_queued_bytes, retire })
                    .map_err(system("start a thread"))?;
            Ok::<_, RunError>((peers, core, threads))
        })
        .await?;
        let threads = std::sync::Mutex::new(Some(threads));
        // The identity is locked, so nobody else was faster.
        let _ = self.running.set(Running { core, peers, genesis, threads });
        self.started.send_replace(true);
        Ok(())
    }

    /// An engine that does not start ends the process.
    async fn report(&self, started: Result<(), RunError>) {
        if let Err(error) = started {
            let _ = self.fatal.send(error).await;
        }
    }

    /// Another replica found out that this one forgot what it had promised. It must say nothing more.
    pub fn retire(&self, why: String) {
        // Who was faster says as much.
        let _ = self.retiring.send(why);
    }

    /// Notes that this identity has retired; gives the error that ends the process. The next start tells everyone why.
    async fn retired(&self, why: String) -> RunError {
        let mut identity = self.identity.lock().await;
        let (mut next, disk) = (identity.clone(), Arc::clone(&self.disk));
        let noted = blocking(move || next.retire(why, &*disk).map(|()| next)).await;
        match noted {
            Ok(retired) => {
                *identity = retired;
                identity.check_fit().expect_err("it has just retired").into()
            }
            Err(error) => error.into(),
        }
    }

    /// Tells everyone to look elsewhere, hands over if it leads, and answers what is under way.
    async fn leave(&self, signals: &mut Signals) {
        tracing::info!("told to stop");
        self.stage.send_replace(Stage::Leaving);
        if let Some(running) = self.running() {
            tokio::select! {
                () = hand_over_to_anyone(running) => {}
                () = signals.next() => tracing::warn!("told again: stopping at once"),
            }
        }
        self.stage.send_replace(Stage::Draining);
    }

    /// Ends the threads, and waits until they have.
    pub fn stop_threads(&self) {
        let Some(running) = self.running() else { return };
        // The thread may be gone, which is what is wanted.
        let _ = running.core.urgent.send(Urgent::Stop);
        let threads = running.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(threads) = threads {
            threads.join();
        }
    }
}

fn genesis_of(identity: &Identity) -> String {
    identity.genesis.as_ref().map(|genesis| genesis.service.to_string()).unwrap_or_default()
}

async fn hand_over_to_anyone(running: &Running) {
    let status = running.core.fresh_status().await;
    if status.role != RoleName::Leader || status.membership.newest.voters().len() == 1 {
        return;
    }
    // When all replicas are told to stop, the others may be gone already.
    let alone = async {
        while !running.peers.is_alone() {
            sleep(LOOK).await;
        }
    };
    let handed_over = async {
        tokio::select! {
            leader = hand_over(running, None) => Some(leader),
            () = alone => None,
        }
    };
    match timeout(HAND_OVER, handed_over).await {
        Ok(Some(leader)) => tracing::info!("handed over to {leader}"),
        Ok(None) => tracing::info!("no other replica is up; nobody to hand over to"),
        Err(_) => tracing::warn!("nobody took over within {HAND_OVER:?}; the others elect a leader without this one"),
    }
}

/// Asks again and again, since the first attempt may come too early, until another replica leads. Gives its slot.
pub(crate) async fn hand_over(running: &Running, target: Option<Slot>) -> Slot {
    const AGAIN: Duration = Duration::from_millis(500);
    let mine = running.peers.slot();
    let mut status = running.core.status.clone();
    loop {
        // A thread that is gone ends the process anyway.
        let _ = running.core.urgent.send(Urgent::HandOver(target));
        let other = status.wait_for(|status| status.leader.is_some_and(|leader| leader != mine));
        if let Ok(Ok(status)) = timeout(AGAIN, other).await
            && let Some(leader) = status.leader
        {
            return leader;
        }
    }
}

impl Token {
    fn of(args: &Args) -> Result<Token, RunError> {
        match (&args.admin_token_file, &args.admin_token) {
            (Some(path), _) => match std::fs::read_to_string(path) {
                Ok(_) => Ok(Token::File(path.clone())),
                Err(source) => Err(RunError::Token { path: path.clone(), source }),
            },
            (None, Some(token)) => Ok(Token::Value(token.clone())),
            (None, None) => Ok(Token::None),
        }
    }
}

pub(crate) fn system(action: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::System { action, source }
}

/// Runs what waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
