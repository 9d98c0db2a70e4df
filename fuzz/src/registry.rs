use std::time::Duration;

use futures_util::StreamExt as _;
use servicekit::{Instance, Label, registry::Claim, store::Group};

use crate::{World, lines, run};

/// Instances (`i` before each line) and sessions (`s`) that are anything: each is listed or skipped, and its place can be
/// taken.
pub fn registry(bytes: &[u8]) {
    let (profile, lines) = lines(bytes);
    let (world, label): (_, Label) = (World::new(profile), "web".parse().expect("a label"));
    let instances = Group::scoped(&world.namespace, "instances", &(&label).into());
    let sessions = Group::of(&world.namespace, "sessions");
    run(async {
        let ttl = Some(Duration::from_secs(60));
        for (n, line) in lines.take(8).enumerate() {
            match line.split_first() {
                Some((b's', value)) => {
                    world.write(&sessions, &format!("s-{n:04x}"), value, ttl).await;
                }
                Some((b'i', value)) => {
                    world.write(&instances, &format!("web-{n}"), value, ttl).await;
                }
                _ => {}
            }
        }
        let registry = world.backend().registry;
        let listed = registry.list(&label).await.expect("what is odd is skipped").instances;
        for instance in &listed {
            assert_eq!(instance.label, label);
            assert!(instance.service_id.as_str().starts_with("web-"));
        }
        let mut events = registry.watch(&label);
        drop(events.next().await.expect("it does not end").expect("a snapshot"));
        drop(registry.labels().await.expect("labels"));
        let session = registry.open("fuzz", Duration::from_secs(60)).await.expect("a session");
        for n in 0..2 {
            let id = format!("web-{n}").parse().expect("an id");
            let wall = world.env.clock.wall();
            let instance = Instance::starting(label.clone(), id, "host", wall);
            let claim = Claim::new();
            if registry.put(&session, &claim, &instance).await.is_ok() {
                drop(registry.remove(&claim, &label, &instance.service_id).await);
            }
        }
        drop(registry.beat(&session).await);
        registry.close(&session).await.expect("closed");
    });
}
