//! The invariants, over every combination of pods that a small service can be in.

use super::*;

/// Every combination of states and templates for `n` pods.
fn every(n: usize, states: &[State], check: &mut impl FnMut(&[(State, bool)])) {
    let options: Vec<(State, bool)> = states.iter().flat_map(|state| [(*state, N), (*state, O)]).collect();
    let total = options.len().pow(u32::try_from(n).expect("small"));
    for mut number in 0..total {
        let mut pods = Vec::with_capacity(n);
        for _ in 0..n {
            pods.push(options[number % options.len()]);
            number /= options.len();
        }
        if pods.iter().filter(|(state, _)| *state == Leader).count() <= 1 {
            check(&pods);
        }
    }
}

#[test]
fn every_combination_keeps_the_invariants() {
    let small = [
        Absent,
        Terminating,
        Overdue,
        Silent,
        Dark,
        Stuck,
        Fresh,
        NotReady,
        Sick,
        Ailing,
        Ready,
        Leader,
        Lost,
        Foreign,
    ];
    let (moving, lasting) = ([Terminating, Stuck, NotReady, Ready, Leader], [Dark, Sick, Ailing, Ready, Leader]);
    for (n, states) in [(1, &small[..]), (3, &small[..]), (5, &moving[..]), (5, &lasting[..])] {
        let (bare, born) = (of_size(n), with_genesis(of_size(n)));
        let quorum = born.quorum();
        every(n, states, &mut |pods| {
            let ready = |(state, _): &(State, bool)| matches!(state, Ready | Leader);
            let world = world_of_pods(pods);
            let before = crate::decide::pods(&bare, &world, FRESH);
            let after = crate::decide::pods(&born, &world, FRESH);
            // Before genesis: recorded only when all are fresh; never sent, nobody made to hand over.
            match &before {
                Decision::Act(Action::RecordGenesis { genesis, adopted }) => {
                    assert!(!adopted && genesis.validate().is_ok(), "{pods:?}");
                    assert!(pods.iter().all(|(state, _)| matches!(state, Fresh | Lost)), "{pods:?}");
                }
                Decision::Act(Action::SendGenesis { .. } | Action::HandOver { .. }) => panic!("{pods:?}: {before:?}"),
                Decision::Converged => panic!("{pods:?}: converged without a genesis"),
                _ => {}
            }
            // After genesis: none is ever recorded; only the recorded one is sent, only to voters without one.
            match &after {
                Decision::Act(Action::RecordGenesis { .. }) => panic!("{pods:?}: a second genesis"),
                Decision::Act(Action::SendGenesis { genesis, targets }) => {
                    assert_eq!(Some(genesis), born.recorded.as_ref());
                    assert!(targets.iter().all(|target| pods[*target].0 == Fresh), "{pods:?}");
                }
                Decision::Act(Action::ReplacePod { ordinal, by, .. }) => {
                    let evicted = *by == Removal::Eviction;
                    assert_eq!(evicted, ready(&pods[*ordinal]), "{pods:?}: only what is well is evicted");
                    let (state, current) = pods[*ordinal];
                    assert!(
                        !current && !matches!(state, Terminating | Overdue),
                        "{pods:?}: a pod that is current, or on its way out"
                    );
                    let others = pods.iter().enumerate().filter(|(other, pod)| other != ordinal && ready(pod)).count();
                    let long = |(state, _): &(State, bool)| matches!(state, Sick | Ailing | Dark | Overdue);
                    let answers = |(state, _): &(State, bool)| matches!(state, Sick | Ailing | Ready | Leader);
                    if matches!(state, Sick | Ailing) && others < n - 1 {
                        let rest = pods.iter().filter(|pod| answers(pod)).count() - 1;
                        let failing = pods.iter().any(|pod| pod.1 && long(pod) && pod.0 != Overdue);
                        assert!(pods.iter().all(|pod| ready(pod) || long(pod)), "{pods:?}: something is in motion");
                        assert!(!failing || others < quorum, "{pods:?}: the template fails with a quorum ready");
                        if state == Ailing && others < quorum {
                            assert!(!failing && rest >= quorum, "{pods:?}: a voter that may be needed");
                        }
                    } else if state != Stuck {
                        assert_eq!(others, n - 1, "{pods:?}: another one is not ready");
                        assert!(n == 1 || others >= quorum, "{pods:?}: no quorum is left");
                        assert!(n == 1 || state != Leader, "{pods:?}: the leader goes without a hand-over");
                    }
                }
                Decision::Act(Action::HandOver { leader, to, .. }) => {
                    assert_eq!((pods[*leader], pods[*to]), ((Leader, O), (Ready, N)), "{pods:?}");
                    assert!(pods.iter().all(ready), "{pods:?}");
                }
                Decision::Converged => {
                    assert!(pods.iter().all(|pod| ready(pod) && pod.1), "{pods:?}: converged");
                }
                _ => {}
            }
            // With any claim on its way out: its pod stays, and no genesis is entrusted to it.
            for ordinal in (0..n).filter(|_| n <= 3) {
                let mut world = world_of_pods(pods);
                world.claims.get_mut(&ordinal).expect("a claim").terminating = true;
                for service in [&bare, &born] {
                    match crate::decide::pods(service, &world, FRESH) {
                        Decision::Act(Action::ReplacePod { ordinal: deleted, .. }) => {
                            assert_ne!(deleted, ordinal, "{pods:?}: a volume is destroyed");
                        }
                        Decision::Act(Action::RecordGenesis { .. }) => panic!("{pods:?}: a genesis on a dying volume"),
                        _ => {}
                    }
                }
            }
            if pods.iter().all(|pod| ready(pod) && pod.1) {
                assert_eq!(after, Decision::Converged, "{pods:?}");
            }
        });
    }
}
