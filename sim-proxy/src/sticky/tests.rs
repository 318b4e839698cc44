use super::*;
use crate::config::EjectSettings;
use crate::live::InstanceLive;
use proptest::prelude::*;
use std::sync::Arc;

const NOW: u64 = 1_000_000_000_000;

fn upstreams(weights: &[u16]) -> Vec<Upstream> {
    let upstream = |(id, &weight_bp): (usize, &u16)| Upstream {
        instance: InstanceId(id as u64 + 1),
        weight_bp,
        ready: true,
        live: Arc::new(InstanceLive::new(
            InstanceId(id as u64 + 1),
            ([127, 0, 0, 1], 80).into(),
        )),
    };
    weights.iter().enumerate().map(upstream).collect()
}

fn homes(upstreams: &[Upstream], sessions: u32) -> Vec<usize> {
    (0..sessions)
        .map(|session| {
            let key = SessionKey::of(&session.to_le_bytes());
            pick(upstreams, key, NOW, None).expect("an instance").at
        })
        .collect()
}

#[test]
fn sessions_obey_the_weights() {
    for weights in [[9_500, 500], [5_000, 5_000], [100, 9_900]] {
        let homes = homes(&upstreams(&weights), 20_000);
        let share = homes.iter().filter(|&&at| at == 0).count() as f64 / 20_000.0;
        let weight = f64::from(weights[0]) / 10_000.0;
        // 5 standard deviations of a fair draw.
        let bound = 5.0 * (weight * (1.0 - weight) / 20_000.0).sqrt();
        assert!((share - weight).abs() < bound, "{weights:?}: {share}");
    }
}

#[test]
fn in_a_shift_each_session_moves_once_and_no_more_than_must() {
    let steps: [u16; 7] = [0, 500, 1_000, 2_500, 5_000, 7_500, 10_000];
    let mut before = homes(&upstreams(&[10_000, 0]), 10_000);
    for pair in steps.windows(2) {
        let after = homes(&upstreams(&[10_000 - pair[1], pair[1]]), 10_000);
        let moved: Vec<_> = before
            .iter()
            .zip(&after)
            .filter(|(one, other)| one != other)
            .collect();
        assert!(
            moved.iter().all(|&(&from, &to)| (from, to) == (0, 1)),
            "none goes back"
        );
        let must = usize::from(pair[1] - pair[0]);
        assert!(
            moved.len().abs_diff(must) < 300,
            "{} for {must}",
            moved.len()
        );
        before = after;
    }
    assert!(before.iter().all(|&at| at == 1));
}

#[test]
fn an_ejected_instance_s_sessions_go_elsewhere_and_come_back_and_the_others_stay() {
    let upstreams = upstreams(&[3_000, 3_000, 4_000]);
    let before = homes(&upstreams, 3_000);
    let settings = EjectSettings::default();
    upstreams[1].live.health().eject(NOW, &settings);
    let during = homes(&upstreams, 3_000);
    for (&before, &during) in before.iter().zip(&during) {
        if before == 1 {
            assert_ne!(during, 1);
        } else {
            assert_eq!(before, during);
        }
    }
    assert!(during.contains(&0) && during.contains(&2));
    // A session of its own finds out whether it is back.
    let later = upstreams[1].live.health().out_until_ns();
    let at_home = before.iter().position(|&at| at == 1).expect("one") as u32;
    let key = SessionKey::of(&at_home.to_le_bytes());
    let probe = pick(&upstreams, key, later, None).expect("an instance");
    assert_eq!(
        probe,
        Pick {
            at: 1,
            how: How::Probe
        }
    );
    assert!(upstreams[1].live.health().succeeded(true, later));
    assert_eq!(homes(&upstreams, 3_000), before);
}

#[test]
fn a_retry_goes_elsewhere_and_without_anyone_in_there_is_no_home() {
    let upstreams = upstreams(&[5_000, 5_000]);
    let key = SessionKey::of(b"a");
    let home = pick(&upstreams, key, NOW, None).expect("an instance");
    let other = pick(&upstreams, key, NOW, Some(upstreams[home.at].instance));
    assert_eq!(other.map(|pick| pick.at), Some(1 - home.at));
    for upstream in &upstreams {
        upstream.live.health().eject(NOW, &EjectSettings::default());
    }
    assert_eq!(pick(&upstreams, key, NOW, None), None);
}

#[test]
fn a_session_is_what_names_it() {
    let cookies = b"a=1; sid=x=y ;sidx=2;  empty=";
    assert_eq!(cookie(cookies, "sid"), Some(&b"x=y"[..]));
    assert_eq!(cookie(cookies, "a"), Some(&b"1"[..]));
    assert_eq!(cookie(cookies, "empty"), None);
    assert_eq!(cookie(cookies, "id"), None);
    assert_eq!(cookie(cookies, "A"), None, "names of cookies have cases");
    let by = Sticky::Cookie("sid".into());
    assert_eq!(by.named_by("COOKIE", b"sid=7"), Some(SessionKey::of(b"7")));
    assert_eq!(by.named_by("X-Cookie", b"sid=7"), None);
    let by = Sticky::Header("x-user".into());
    assert_eq!(by.named_by("X-User", b"7"), Some(SessionKey::of(b"7")));
    let v4 = SessionKey::of_address("10.0.0.1".parse().expect("an address"));
    assert_eq!(
        v4,
        SessionKey::of_address("::ffff:10.0.0.1".parse().expect("an address"))
    );
    assert_ne!(
        v4,
        SessionKey::of_address("10.0.0.2".parse().expect("an address"))
    );
}

#[test]
fn the_hash_is_the_same_for_ever() {
    // Published with XXH3: another value would move every session at an upgrade.
    assert_eq!(SessionKey::of(b""), SessionKey(0x2D06_8005_38D3_94C2));
}

#[test]
fn new_sessions_differ_and_are_written_as_a_field() {
    let (one, other) = (new_session(), new_session());
    assert_ne!(one, other);
    assert!(one.iter().all(u8::is_ascii_hexdigit));
    let mut field = vec![];
    write_set_cookie("sim", b"0123456789abcdef", &mut field);
    assert_eq!(
        field,
        b"Set-Cookie: sim=0123456789abcdef; Path=/; HttpOnly; SameSite=Lax\r\n"
    );
}

proptest! {
    #[test]
    fn the_cookie_that_was_given_is_found_again(name in "[a-z]{1,8}", others in "([a-z]{1,4}=[a-z0-9]{0,4}; ){0,4}") {
        prop_assume!(cookie(others.as_bytes(), &name).is_none());
        let given = new_session();
        let field = format!("{others}{name}={}", String::from_utf8_lossy(&given));
        prop_assert_eq!(cookie(field.as_bytes(), &name), Some(&given[..]));
    }
}

#[test]
fn an_instance_that_comes_back_gets_its_sessions_back_one_after_the_other() {
    let upstreams = upstreams(&[5_000, 5_000]);
    let before = homes(&upstreams, 4_000);
    let span = std::time::Duration::from_secs(10);
    let mut back = 0;
    let mut last = vec![false; before.len()];
    for seconds in (0..=10).rev() {
        // As it is when so many seconds are left.
        let ramp = upstreams[0].live.health().ramp();
        ramp.begin(NOW - (10 - seconds) * 1_000_000_000, span);
        let during = homes(&upstreams, 4_000);
        let at_home: Vec<_> = during.iter().map(|&at| at == 0).collect();
        assert!(last.iter().zip(&at_home).all(|(was, is)| !was || *is));
        let now = at_home.iter().filter(|&&is| is).count();
        assert!(now > back, "{now} after {back}");
        (back, last) = (now, at_home);
        if seconds == 10 {
            let tenth = now as f64 / before.iter().filter(|&&at| at == 0).count() as f64;
            assert!((0.07..0.13).contains(&tenth), "{tenth}");
        }
    }
    assert_eq!(homes(&upstreams, 4_000), before);
}
