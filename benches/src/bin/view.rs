//! Looking up one label in a view of 100,000 instances: time, allocations, and the memory of the view.
//!
//! ```sh
//! cargo run --release -p servicekit-benches --bin view
//! ```

use std::{alloc::System, error::Error, hint::black_box, sync::Arc, time::Duration};

use servicekit::{
    Backend, Clock as _, Env, Instance, Label, Namespace, State,
    clock::SystemClock,
    discovery::{Options, View},
    registry::Claim,
    store::{Limits, Memory, Profile},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const LABELS: usize = 1_000;
const INSTANCES: usize = 100;
const LOOK_UPS: u32 = 1_000_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let env = Env::system();
    let store = Arc::new(Memory::new(env.clone(), Profile::Server));
    let namespace = Namespace::default();
    let backend = Backend::over("memory", store, namespace, env.clone(), Limits::default());
    let session = backend.registry.open("bench", Duration::from_secs(3600)).await?;
    let labels: Vec<Label> =
        (0..LABELS).map(|i| format!("service-{i:04}").parse()).collect::<Result<_, _>>()?;
    for (i, label) in labels.iter().enumerate() {
        for j in 0..INSTANCES {
            let now = env.clock.wall();
            let id = format!("{label}-host-{j:03}").parse()?;
            let host = format!("10.{}.{}.{j}", i / 256, i % 256);
            let mut instance = Instance::starting(label.clone(), id, host, now);
            instance.port = Some(8080);
            instance.info = [("version", "1.2.3")].into_iter().collect();
            instance.change(State::Up, "rise 1", "200 OK", now);
            backend.registry.put(&session, &Claim::new(), &instance).await?;
        }
    }

    let before = Region::new(ALLOCATOR);
    let view = View::open(&backend.registry, Options::labels(labels.clone()), env);
    view.ready().await;
    let change = before.change();
    let memory = change.bytes_allocated - change.bytes_deallocated;

    let looked_up = &labels[LABELS / 2];
    let up = view.list(looked_up).ok_or("followed")?.up.len();
    let region = Region::new(ALLOCATOR);
    let began = SystemClock.now();
    for _ in 0..LOOK_UPS {
        black_box(view.list(black_box(looked_up)));
    }
    let each = SystemClock.now().since(began) / LOOK_UPS;
    let allocations = region.change().allocations;
    println!("instances in the view:     {:10}", LABELS * INSTANCES);
    println!("instances in a look-up:    {up:10}");
    println!("time of a look-up:         {each:10.0?}");
    println!("allocations in {LOOK_UPS}: {allocations:10}");
    println!("memory of the view:        {:7.1} MB", memory as f64 / 1e6);
    Ok(())
}
