//! Lines of `/etc/hosts`: the name of the service leads to all of its addresses, and each instance has a name below it.

use servicekit::{Instance, Label};

pub(super) fn render(label: &Label, instances: &[Instance]) -> String {
    let mut lines: Vec<(&str, Vec<String>)> = Vec::new();
    for instance in instances {
        let name = name(instance);
        match lines.iter_mut().find(|(host, _)| *host == instance.host) {
            Some((_, names)) => names.extend(name),
            None => lines.push((&instance.host, name.into_iter().collect())),
        }
    }
    // The first name is what the address leads back to.
    lines
        .into_iter()
        .map(|(host, names)| {
            format!("{host} {}\n", [names, vec![label.to_string()]].concat().join(" "))
        })
        .collect()
}

/// Always below the label: an instance that calls itself `example.com` must not take that name over.
fn name(instance: &Instance) -> Option<String> {
    let name = format!("{}.{}", instance.service_id, instance.label);
    let is_part = |part: &str| (1..=63).contains(&part.len()) && !part.contains([':', '@']);
    (name.len() <= 253 && name.split('.').all(is_part)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{instances, label};

    #[test]
    fn an_address_has_one_line_with_all_its_names() {
        let mut instances = instances(&[("10.0.0.2", Some(80)), ("::1", None), ("10.0.0.2", None)]);
        assert_eq!(
            super::render(&label(), &instances),
            "10.0.0.2 web-0.web web-2.web web\n::1 web-1.web web\n"
        );
        for id in ["a:b", "a@b", "a..b", ".a", "a."] {
            instances[1].service_id = id.parse().unwrap();
            assert_eq!(super::render(&label(), &instances[1..2]), "::1 web\n", "{id}");
        }
    }
}
