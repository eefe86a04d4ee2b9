//! What a seed draws before its run begins: sizes, times and which faults there are. Swarm testing: a run with few kinds of
//! faults reaches states that a run with all of them never does (Groce et al. 2012).

use std::fmt;

use lockstep_consensus::Options;
use lockstep_engine::SnapshotOptions;

use crate::Micros;
use crate::random::Random;

const MILLISECOND: Micros = 1_000;
const SECOND: Micros = 1_000_000;

/// Which kind of run a seed draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scenario {
    /// Seconds full of faults.
    #[default]
    Chaos,
    /// A long life, compressed: thousands of commits, tens of snapshots, and nobody left of those who began.
    Life,
}

/// One run, as drawn.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kind of run.
    pub scenario: Scenario,
    /// Voters.
    pub replicas: usize,
    /// Times and bounds of the rules.
    pub rules: Options,
    /// Size of a log segment.
    pub segment_bytes: u64,
    /// Bytes of blocks between two snapshots.
    pub snapshot_bytes: u64,
    /// How they are served and announced.
    pub snapshots: SnapshotOptions,
    /// Microseconds between two messages with execution digests.
    pub compare: Micros,
    /// Limits of the session table.
    pub sessions_max: u32,
    /// Limits of the session table.
    pub reply_bytes_max: u64,
    /// How long faults go on.
    pub chaos: Micros,
    /// Between replicas.
    pub peers: Link,
    /// Between clients and replicas.
    pub doors: Link,
    /// In a thousand messages between replicas: delivered again, seconds later.
    pub very_old: u64,
    /// From write to sync: least and most.
    pub disk: (Micros, Micros),
    /// How long several events gather before the engine is polled; 0: polled after each.
    pub poll_delay: Micros,
    /// The engine's host allocates the next segment ahead.
    pub allocate_ahead: bool,
    /// Mean time between two faults of a kind; none: the kind does not happen.
    pub faults: Faults,
    /// Faults seek the leader, in percent.
    pub aim: u64,
    /// Crashes that are power cuts, in percent.
    pub power: u64,
    /// How long a crashed replica stays down, on average.
    pub downtime: Micros,
    /// How long a partition lasts, on average.
    pub cut_time: Micros,
    /// In percent: a new leader crashes within milliseconds.
    pub crash_new_leader: u64,
    /// In a thousand outputs with messages: the process dies while it sends them.
    pub crash_while_sending: u64,
    /// The clients.
    pub clients: Clients,
}

/// How messages travel.
#[derive(Clone, Debug)]
pub struct Link {
    /// Least and most time on the way.
    pub latency: (Micros, Micros),
    /// In a thousand: lost.
    pub loss: u64,
    /// In a thousand: delivered twice.
    pub duplicate: u64,
    /// In a thousand: overtaken by later ones.
    pub reorder: u64,
    /// In a thousand: delayed by up to a second.
    pub late: u64,
}

/// Mean times between faults.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Links between replicas are cut, in one direction or both.
    pub partition: Option<Micros>,
    /// One process is killed, or loses power.
    pub crash: Option<Micros>,
    /// All lose power at once.
    pub blackout: Option<Micros>,
    /// A replica is asked to hand over.
    pub hand_over: Option<Micros>,
    /// A disk hangs for seconds.
    pub hang: Option<Micros>,
    /// A process stands still for a while, as by SIGSTOP: what arrives meanwhile waits.
    pub pause: Option<Micros>,
    /// A wall clock jumps.
    pub wall_jump: Option<Micros>,
    /// A client process dies; its session is abandoned.
    pub client_crash: Option<Micros>,
    /// A client is cut off from a replica without a word.
    pub client_cut: Option<Micros>,
    /// A disk is lost for good; another replica takes its place.
    pub disk_loss: Option<Micros>,
    /// A volume is copied, or an old copy put back.
    pub restore: Option<Micros>,
    /// A member is replaced, added or removed.
    pub reshape: Option<Micros>,
    /// A bit of a replica's state flips.
    pub bit_flip: Option<Micros>,
}

/// What clients do.
#[derive(Clone, Debug)]
pub struct Clients {
    /// How many.
    pub count: usize,
    /// Keys that they share.
    pub keys: u64,
    /// Requests submitted at once, at most.
    pub burst: u64,
    /// Requests of one client that are not answered, at most.
    pub in_flight: usize,
    /// Mean time between two bursts.
    pub think: Micros,
    /// Requests that are reads, in percent.
    pub reads: u64,
    /// Least and most time until a request's deadline.
    pub deadline: (Micros, Micros),
    /// How long a session waits for an answer before it asks elsewhere.
    pub attempt_timeout: Micros,
    /// After this long a session asks whether it still lives.
    pub idle: Micros,
    /// The first replica asked is told by whoever answers, in percent of answers.
    pub follow_hints: u64,
    /// A client closes its session and opens another, in percent of its bursts.
    pub close: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(scenario: Scenario, random: &mut Random) -> Self {
        let plan = Plan::draw_chaos(random);
        match scenario {
            Scenario::Chaos => plan,
            Scenario::Life => plan.prolonged(random),
        }
    }

    /// A life: the same faults, further apart, so that work gets done in between; small snapshots, and disks that wear out.
    fn prolonged(mut self, random: &mut Random) -> Self {
        let faults = &mut self.faults;
        let others = [
            &mut faults.partition,
            &mut faults.crash,
            &mut faults.blackout,
            &mut faults.hand_over,
            &mut faults.hang,
            &mut faults.pause,
        ];
        others.into_iter().flatten().for_each(|mean| *mean *= 3);
        faults.disk_loss = Some(10 * SECOND).filter(|_| self.replicas > 1);
        faults.restore = Some(4 * SECOND).filter(|_| self.replicas > 1);
        faults.reshape = Some(15 * SECOND);
        self.chaos = random.between(60, 120) * SECOND;
        self.snapshot_bytes = random.pick(&[4096, 8192]);
        self.clients.burst = self.clients.burst.max(4);
        self.clients.think = self.clients.think.min(100 * MILLISECOND);
        self.scenario = Scenario::Life;
        self
    }

    fn draw_chaos(random: &mut Random) -> Self {
        let replicas = match random.below(10) {
            0 => 1,
            1 | 2 => 5,
            _ => 3,
        };
        let heartbeat = random.pick(&[20, 50, 50, 100]) * MILLISECOND;
        let election = heartbeat * random.between(4, 10);
        let rules = Options {
            heartbeat,
            election,
            window: random.pick(&[1, 2, 4, 16, 16]),
            slow_disk: random.pick(&[1, 2, 4]) * SECOND,
            slew_ms: random.pick(&[10, 1_000]),
        };
        let quiet = random.percent(20);
        let peers = Link {
            latency: random.pick(&[(100, 500), (200, 5_000), (1_000, 30_000)]),
            loss: if quiet { 0 } else { random.pick(&[0, 5, 50, 200]) },
            duplicate: if quiet { 0 } else { random.pick(&[0, 20, 200]) },
            reorder: if quiet { 0 } else { random.pick(&[0, 20, 300]) },
            late: if quiet { 0 } else { random.pick(&[0, 2, 20]) },
        };
        let doors = Link {
            latency: random.pick(&[(100, 500), (200, 5_000), (1_000, 30_000)]),
            loss: random.pick(&[0, 5, 50]),
            duplicate: 0,
            reorder: random.pick(&[0, 0, 20, 200]),
            late: random.pick(&[0, 2, 20]),
        };
        let mut sometimes =
            |percent: u64, means: &[Micros]| random.percent(percent).then(|| random.pick(means) * SECOND);
        let faults = Faults {
            partition: sometimes(60, &[1, 3, 6]).filter(|_| replicas > 1),
            crash: sometimes(70, &[1, 3, 6]),
            blackout: sometimes(25, &[5, 10]),
            hand_over: sometimes(40, &[1, 4]),
            hang: sometimes(25, &[4, 8]),
            pause: sometimes(30, &[2, 5]),
            wall_jump: sometimes(30, &[2]),
            client_crash: sometimes(40, &[3, 8]),
            client_cut: sometimes(30, &[3]),
            disk_loss: sometimes(30, &[3, 6]).filter(|_| replicas > 1),
            restore: sometimes(25, &[1, 2]).filter(|_| replicas > 1),
            reshape: sometimes(35, &[2, 5]),
            bit_flip: sometimes(40, &[2, 4]).filter(|_| replicas > 1),
        };
        let clients = Clients {
            count: random.between(1, 5) as usize,
            keys: random.pick(&[1, 4, 16]),
            burst: random.pick(&[1, 4, 30]),
            in_flight: random.pick(&[1, 8, 100]),
            think: random.pick(&[20, 100, 400]) * MILLISECOND,
            reads: random.pick(&[0, 20, 60]),
            deadline: random.pick(&[(300 * MILLISECOND, 2 * SECOND), (3 * SECOND, 10 * SECOND)]),
            attempt_timeout: random.pick(&[200 * MILLISECOND, SECOND]),
            idle: random.pick(&[SECOND, 30 * SECOND]),
            follow_hints: random.pick(&[0, 50, 100]),
            close: random.pick(&[0, 0, 5]),
        };
        Plan {
            scenario: Scenario::Chaos,
            replicas,
            rules,
            segment_bytes: random.pick(&[512, 512, 1024, 2048]) << 10,
            snapshot_bytes: random.pick(&[4096, 4096, 20_000, 1 << 40]),
            snapshots: SnapshotOptions {
                serve_bytes_per_second: random.pick(&[10_000, 1 << 30]),
                announce: random.pick(&[200 * MILLISECOND, SECOND]),
                retain_bytes: random.pick(&[0, 256 << 20]),
            },
            compare: random.pick(&[50, 200, 1_000]) * MILLISECOND,
            sessions_max: random.pick(&[2, 6, 4096]),
            reply_bytes_max: random.pick(&[500, 64 << 20]),
            chaos: random.between(8, 20) * SECOND,
            peers,
            doors,
            very_old: if quiet { 0 } else { random.pick(&[0, 5]) },
            disk: random.pick(&[(100, 300), (500, 5_000), (2_000, 40_000)]),
            poll_delay: random.pick(&[0, 0, 100, 2_000]),
            allocate_ahead: random.percent(50),
            faults,
            aim: random.pick(&[0, 50, 90]),
            power: random.pick(&[0, 50, 100]),
            downtime: random.pick(&[50, 500, 3_000]) * MILLISECOND,
            cut_time: random.pick(&[200, 1_000, 3_000]) * MILLISECOND,
            crash_new_leader: random.pick(&[0, 0, 30]),
            crash_while_sending: random.pick(&[0, 0, 2]),
            clients,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} replicas, {} clients, heartbeat {} ms, election {} ms, window {}, segments {} KiB, snapshots every {} bytes, \
             {} sessions, {} reply bytes, chaos {} s; faults every (µs):",
            self.replicas,
            self.clients.count,
            self.rules.heartbeat / MILLISECOND,
            self.rules.election / MILLISECOND,
            self.rules.window,
            self.segment_bytes >> 10,
            self.snapshot_bytes,
            self.sessions_max,
            self.reply_bytes_max,
            self.chaos / SECOND,
        )?;
        let Faults {
            partition,
            crash,
            blackout,
            hand_over,
            hang,
            pause,
            wall_jump,
            client_crash,
            client_cut,
            disk_loss,
            restore,
            reshape,
            bit_flip,
        } = &self.faults;
        let faults = [
            ("partition", partition),
            ("crash", crash),
            ("blackout", blackout),
            ("hand-over", hand_over),
            ("hang", hang),
            ("pause", pause),
            ("wall jump", wall_jump),
            ("client crash", client_crash),
            ("client cut", client_cut),
            ("disk loss", disk_loss),
            ("restore", restore),
            ("reshape", reshape),
            ("bit flip", bit_flip),
        ];
        faults
            .iter()
            .filter_map(|(name, mean)| mean.map(|mean| (name, mean)))
            .try_for_each(|(name, mean)| write!(f, " {name} {mean}"))
    }
}
