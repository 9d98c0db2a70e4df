use std::{convert::Infallible, sync::Arc};

use futures_util::future::join_all;
use servicekit_core::{
    Instance, State,
    health::{Health, Probe, Verdict},
};
use tokio::sync::watch;

use crate::{Report, Service, grants::Grants, node::Node};

/// Probes one service for as long as it is polled, and publishes its state.
pub(crate) async fn watch(
    node: &Node,
    service: &Service,
    state: watch::Sender<Instance>,
    grants: &Grants,
) -> Infallible {
    let clock = &*node.env.clock;
    let mut health = Health::new(service.thresholds);
    let mut news = grants.news();
    loop {
        let began = clock.now();
        if health.state() != State::Up {
            grants.look();
        }
        let seen = news.borrow_and_update().clone();
        let verdict = ask(&service.probes).await;
        if verdict.passed() && !seen.is_empty() {
            grants.release(seen);
        }
        if let Some((to, rule)) = health.observe(&verdict) {
            publish(node, &state, to, &rule, &verdict);
        }
        let next = node.env.random.jitter(service.interval, 0.1);
        let mut pause = clock.sleep(next.saturating_sub(clock.now().since(began)));
        loop {
            tokio::select! {
                () = &mut pause => break,
                // A grant was seen: a probe that begins now may release it, so others need not wait for the interval.
                Ok(()) = news.changed() => if !news.borrow_and_update().is_empty() { break },
            }
        }
    }
}

/// Asks all probes at once; all of them must pass.
async fn ask(probes: &[Arc<dyn Probe>]) -> Verdict {
    let verdicts = join_all(probes.iter().map(|probe| probe.check())).await;
    let said = |verdicts: &mut dyn Iterator<Item = &Verdict>| {
        verdicts.map(Verdict::output).collect::<Vec<_>>().join("; ")
    };
    if verdicts.iter().all(Verdict::passed) {
        Verdict::Pass(said(&mut verdicts.iter()))
    } else {
        Verdict::Fail(said(&mut verdicts.iter().filter(|verdict| !verdict.passed())))
    }
}

fn publish(node: &Node, state: &watch::Sender<Instance>, to: State, rule: &str, verdict: &Verdict) {
    let mut from = to;
    let mut reason = String::new();
    state.send_modify(|instance| {
        from = instance.state;
        instance.change(to, rule, verdict.output(), node.env.clock.wall());
        reason.clone_from(&instance.reason);
    });
    let Instance { label, service_id, .. } = &*state.borrow();
    node.report(Report::Changed {
        label: label.clone(),
        service_id: service_id.clone(),
        from,
        to,
        reason,
    });
}
