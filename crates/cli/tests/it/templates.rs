//! Settings of templates. What templates do is tested where they are used from a program.

use std::fs;

use microsandbox::env;

use crate::home::Home;

#[test]
fn no_templates_are_used_or_kept_where_none_may_be() {
    let home = Home::with_busybox();
    let old = home.path().join("templates/0123456789abcdef0123456789abcdef");
    for setting in [env::MSB_MAX_TEMPLATES, env::MSB_MAX_TEMPLATES_MIB] {
        fs::create_dir_all(&old).unwrap();
        let create = &mut home.msb(&["create", "-q", "--name", "a", "busybox"]);
        let created = home.end(create.env(env::MSB_BOOT, "template").env(setting, "0"));
        assert_eq!((created.code, created.stderr.as_str()), (0, ""));
        let told = home.run(&["inspect", "a"]).stdout;
        assert!(told.contains("\"because\": \"declined\""), "{told}");
        assert!(!old.exists(), "{setting}");
        home.check(&["rm", "-f", "a"], 0, "a\n", "");
    }
}

#[test]
fn limit_that_is_no_number_is_refused() {
    let home = Home::empty();
    let list = &mut home.msb(&["ls"]);
    let refused = home.end(list.env(env::MSB_MAX_TEMPLATES_MIB, "1G"));
    let expected = "msb: invalid config: MSB_MAX_TEMPLATES_MIB is \"1G\", not a whole number\n";
    assert_eq!((refused.code, refused.stderr.as_str()), (125, expected));
}
