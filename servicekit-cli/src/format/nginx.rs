//! An upstream block of nginx, named by the label.

use servicekit::{Instance, Label};

use super::distinct;

pub(super) fn render(label: &Label, instances: &[Instance]) -> String {
    let server = |(instance, address): (&Instance, String)| {
        // nginx takes no weight of zero.
        let share = match instance.weight {
            0 => "down".to_owned(),
            weight => format!("weight={weight}"),
        };
        format!("    server {address} {share};\n")
    };
    let mut servers: String = distinct(instances).map(server).collect();
    if servers.is_empty() {
        // nginx refuses an empty block; with this one it answers 502.
        servers = "    server 127.0.0.1:1 down;\n".into();
    }
    format!("upstream {label} {{\n{servers}}}\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{instances, label};

    #[test]
    fn each_instance_is_a_server() {
        let mut instances = instances(&[("10.0.0.2", Some(80)), ("::1", Some(80))]);
        instances[1].weight = 0;
        assert_eq!(
            super::render(&label(), &instances),
            "upstream web {\n    server 10.0.0.2:80 weight=100;\n    server [::1]:80 down;\n}\n"
        );
        assert_eq!(
            super::render(&label(), &[]),
            "upstream web {\n    server 127.0.0.1:1 down;\n}\n"
        );
    }
}
