//! A bit of a replica's state flips. It must be noticed, at the very block, and the state built anew; nobody else may be touched
//! by it, and nothing be read from a state that is fenced.

use super::*;

impl World {
    /// A request is sent that one replica executes wrongly, once. One such replica at a time, and each of them once.
    pub(super) fn flip_bit(&mut self, victim: usize) -> Result<(), Violation> {
        let client = self.random.below(self.clients.len() as u64) as usize;
        let well = (0..self.hosts.len()).all(|replica| !self.checkers.is_suspect(replica));
        let enough = self.config().voters().len() > 2;
        if !well || !enough || !self.is_voter(victim) || self.operation.is_some() || self.clients[client].closing {
            return Ok(());
        }
        if !self.checkers.suspects(victim) {
            return Ok(());
        }
        self.trace.line(self.now, format_args!("a bit of {} flips", slot(victim)));
        let key = KeyValueWithFaults::key(&slot(victim).to_string(), false);
        let value = Bytes::from(format!("{client} flips {victim} at {}", self.now));
        self.submit(client, What::Write { body: KvRequest::Put { key, value }.encode() }, false)
    }

    /// What a replica says of its state after a step, and what it did in it. `before` is its role until then.
    pub(super) fn check_doubt(
        &mut self,
        replica: usize,
        before: RoleName,
        status: &Status,
        replies: &[(Token, Answer)],
    ) -> Result<(), Violation> {
        let me = slot(replica);
        let counters = std::mem::replace(&mut self.hosts[replica].divergences, status.divergences);
        let DivergenceCounters { halts, fences, rebuilds } = status.divergences;
        self.counters.add_many(Kind::Doubted, halts - counters.halts);
        self.counters.add_many(Kind::Fenced, fences - counters.fences);
        self.counters.add_many(Kind::Rebuilt, rebuilds - counters.rebuilds);
        let Some(found) = &status.divergence else { return Ok(()) };
        let doubt = self.hosts[replica].doubt.replace(found.state);
        if doubt != Some(found.state) {
            self.trace.line(self.now, format_args!("{me} {found}"));
        }
        let reads = replies.iter().any(|(_, answer)| matches!(answer, Answer::Read(_)));
        match found.state {
            StateDoubt::Over => {
                if doubt != Some(StateDoubt::Over) {
                    self.counters.add_many(Kind::KeyNamed, u64::from(found.key.is_some()));
                    self.checkers.judges(replica, found)?;
                }
                return Ok(());
            }
            StateDoubt::Open | StateDoubt::OpenAgain => {
                require!(!reads, "nothing is read from a state in doubt", "{me} answers a read, and {found}");
                return Ok(());
            }
            StateDoubt::Fenced | StateDoubt::FencedAgain => {}
        }
        require!(!reads, "nothing is read from a state in doubt", "{me} answers a read, and {found}");
        // A lead and a fence may come with the same step.
        let was_fenced = matches!(doubt, Some(StateDoubt::Fenced | StateDoubt::FencedAgain));
        require!(
            !was_fenced || before == RoleName::Leader || status.role != RoleName::Leader,
            "who is fenced leads nobody",
            "{me} takes the lead of view {}, and {found}",
            status.view
        );
        require!(self.checkers.is_suspect(replica), "only a wrong state is fenced", "{me} {found}");
        let fenced = |replica: &usize| {
            let host = &self.hosts[*replica];
            let fenced = matches!(host.doubt, Some(StateDoubt::Fenced | StateDoubt::FencedAgain));
            fenced && matches!(host.state, State::Up { .. })
        };
        let count = (0..self.hosts.len()).filter(|replica| self.is_voter(*replica)).filter(fenced).count();
        require!(
            count <= self.config().tolerated(),
            "at most as many are fenced as may fail",
            "{count} are, of {}",
            self.config()
        );
        Ok(())
    }
}
