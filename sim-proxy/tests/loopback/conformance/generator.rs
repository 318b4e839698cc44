//! Conversations: a few requests on one connection, mostly decent, some with one thing wrong.

/// SplitMix64 (Steele, Lea, Flood 2014): the same conversations for the same seed, everywhere.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.roll() % count as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// What one user sends.
pub(super) struct Conversation {
    pub(super) bytes: Vec<u8>,
    /// What is out of the ordinary in it, if anything.
    pub(super) oddity: &'static str,
}

pub(super) const NONE: &str = "none";

/// Oddities, and what is put into a request for each: `@` is its place in the text.
const IN_FIELDS: &[(&str, &str)] = &[
    ("bare line feed", "X: y\nZ: z\r\n"),
    ("bare carriage return", "X: y\rz\r\n"),
    ("folded field", "X: y\r\n z\r\n"),
    ("space before a colon", "X : y\r\n"),
    ("space in a name", "X Y: z\r\n"),
    ("tab in a name", "X\tY: z\r\n"),
    ("no name", ": y\r\n"),
    ("no colon", "X\r\n"),
    ("zero byte", "X: \0\r\n"),
    ("control byte", "X: \u{1}\r\n"),
    ("upper half", "X: \u{fc}\r\n"),
    ("delimiter in a name", "X(y): z\r\n"),
    ("underscore in a name", "X_y: z\r\n"),
    ("dot in a name", "X.y: z\r\n"),
    (
        "two equal lengths",
        "Content-Length: 3\r\nContent-Length: 3\r\n",
    ),
    ("two lengths", "Content-Length: 3\r\nContent-Length: 4\r\n"),
    ("a list as length", "Content-Length: 3, 3\r\n"),
    ("a signed length", "Content-Length: +3\r\n"),
    ("a negative length", "Content-Length: -3\r\n"),
    ("a hexadecimal length", "Content-Length: 0x3\r\n"),
    ("an empty length", "Content-Length:\r\n"),
    ("a length that is no number", "Content-Length: abc\r\n"),
    ("a length with a fraction", "Content-Length: 3.0\r\n"),
    (
        "a length past 64 bits",
        "Content-Length: 18446744073709551619\r\n",
    ),
    ("a length with zeros", "Content-Length: 003\r\n"),
    (
        "a length beside chunked",
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    ),
    (
        "chunked beside a length",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    ),
    ("another coding", "Transfer-Encoding: gzip\r\n"),
    ("two codings", "Transfer-Encoding: gzip, chunked\r\n"),
    (
        "chunked twice",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ),
    ("no such coding", "Transfer-Encoding: xchunked\r\n"),
    ("identity", "Transfer-Encoding: identity\r\n"),
    ("an empty coding", "Transfer-Encoding:\r\n"),
    ("two hosts", "Host: b\r\n"),
    ("a hop's own field", "Connection: X-Hop\r\nX-Hop: y\r\n"),
    ("connection: close", "Connection: close\r\n"),
    ("connection: keep-alive", "Connection: keep-alive\r\n"),
    ("proxy-connection", "Proxy-Connection: close\r\n"),
    ("te", "TE: trailers\r\n"),
    ("upgrade", "Connection: upgrade\r\nUpgrade: nothing\r\n"),
    ("expect", "Expect: 100-continue\r\n"),
    ("unknown expectation", "Expect: x\r\n"),
];

const LINES: &[(&str, &str)] = &[
    ("two spaces", "GET  @ HTTP/1.1\r\n"),
    ("a tab", "GET\t@ HTTP/1.1\r\n"),
    ("no version", "GET @\r\n"),
    ("HTTP/1.0", "GET @ HTTP/1.0\r\n"),
    ("HTTP/1.2", "GET @ HTTP/1.2\r\n"),
    ("HTTP/2.0", "GET @ HTTP/2.0\r\n"),
    ("http/1.1", "GET @ http/1.1\r\n"),
    ("HTTP/1.1 and a space", "GET @ HTTP/1.1 \r\n"),
    ("HTTP/01.1", "GET @ HTTP/01.1\r\n"),
    ("a line that ends with a line feed", "GET @ HTTP/1.1\n"),
    ("an empty line before", "\r\nGET @ HTTP/1.1\r\n"),
    ("a line feed before", "\nGET @ HTTP/1.1\r\n"),
    ("a space before", " GET @ HTTP/1.1\r\n"),
    ("lower-case method", "get @ HTTP/1.1\r\n"),
    ("unknown method", "BREW @ HTTP/1.1\r\n"),
    ("method with a digit", "G3T @ HTTP/1.1\r\n"),
    ("no method", "@ HTTP/1.1\r\n"),
    ("TRACE", "TRACE @ HTTP/1.1\r\n"),
    ("CONNECT", "CONNECT a:80 HTTP/1.1\r\n"),
    ("absolute form", "GET http://a@ HTTP/1.1\r\n"),
    ("no slash", "GET x@ HTTP/1.1\r\n"),
    ("a fragment", "GET @#f HTTP/1.1\r\n"),
    ("a space in the target", "GET @ x HTTP/1.1\r\n"),
    ("upper half in the target", "GET @\u{fc} HTTP/1.1\r\n"),
    ("control byte in the target", "GET @\u{1} HTTP/1.1\r\n"),
    ("zero byte in the target", "GET @\0 HTTP/1.1\r\n"),
    ("quote in the target", "GET @\" HTTP/1.1\r\n"),
    ("brackets in the target", "GET @<>{}|\\^` HTTP/1.1\r\n"),
];

const BODIES: &[(&str, &str)] = &[
    ("a chunk of no size", "\r\n\r\n"),
    ("a signed chunk", "+3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk in 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk's line feed", "3\nabc\r\n0\r\n\r\n"),
    ("a chunk's end is a line feed", "3\r\nabc\n0\r\n\r\n"),
    ("the last line is a line feed", "3\r\nabc\r\n0\r\n\n"),
    ("a chunk too short", "4\r\nabc\r\n0\r\n\r\n"),
    ("a chunk too long", "2\r\nabc\r\n0\r\n\r\n"),
    ("a space behind a size", "3 \r\nabc\r\n0\r\n\r\n"),
    ("a space before a size", " 3\r\nabc\r\n0\r\n\r\n"),
    (
        "a size past 64 bits",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
    ),
    ("a size with zeros", "0000003\r\nabc\r\n0\r\n\r\n"),
    ("upper-case size", "A\r\nabcdefghij\r\n0\r\n\r\n"),
    ("an extension", "3;x=y\r\nabc\r\n0\r\n\r\n"),
    ("a quoted extension", "3;x=\"y;z\"\r\nabc\r\n0\r\n\r\n"),
    ("an extension with a line feed", "3;x\nabc\r\n0\r\n\r\n"),
    ("trailers", "3\r\nabc\r\n0\r\nX: y\r\n\r\n"),
    (
        "a length as trailer",
        "3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
    ),
    ("a folded trailer", "3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n"),
    ("no chunks", "abc"),
];

/// The conversation of this number; each of its requests has a target below `/c/NUMBER/`.
pub(super) fn conversation(number: usize, dice: &mut Dice) -> Conversation {
    let requests = 1 + dice.below(3);
    let odd = dice.one_in(2).then(|| dice.below(requests));
    let (mut text, mut oddity) = (String::new(), NONE);
    for place in 0..requests {
        let target = format!("/c/{number}/{place}");
        if odd == Some(place) {
            oddity = strange(&target, dice, &mut text);
        } else {
            decent(&target, dice, &mut text);
        }
    }
    text.push_str(&format!(
        "GET /c/{number}/end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    ));
    // Latin-1: one byte each.
    let bytes = text.chars().map(|c| c as u32 as u8).collect();
    Conversation { bytes, oddity }
}

fn decent(target: &str, dice: &mut Dice, text: &mut String) {
    let query = dice.of(&[
        "",
        "",
        "?",
        "?a=b&c",
        "/%41%2f",
        "/a//b",
        "/;x=1",
        "/~!$&'()*+,",
    ]);
    let chunked = |dice: &mut Dice| {
        let mut body = String::new();
        for _ in 0..dice.below(4) {
            let data = "z".repeat(1 + dice.below(40));
            body.push_str(&format!("{:x}\r\n{data}\r\n", data.len()));
        }
        (
            "Transfer-Encoding: chunked\r\n".to_owned(),
            body + "0\r\n\r\n",
        )
    };
    let method = dice.of(&[
        "GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH",
    ]);
    let (framing, body) = match dice.below(4) {
        0 => chunked(dice),
        1 | 2 if method == "POST" || dice.one_in(6) => {
            let body = "y".repeat(dice.below(300));
            (format!("Content-Length: {}\r\n", body.len()), body)
        }
        _ => Default::default(),
    };
    let host = dice.of(&["Host: a\r\n", "host:a\r\n", "HOST:  a.b:80 \r\n"]);
    let mut fields = vec![host.to_owned(), framing];
    for _ in 0..dice.below(5) {
        let field = dice.of(&[
            "Accept: */*\r\n",
            "X-Empty:\r\n",
            "X-Space: \t a b \t\r\n",
            "Cookie: a=b; c=d\r\n",
            "X-Twice: 1\r\nX-Twice: 2\r\n",
            "X-Forwarded-For: 1.2.3.4\r\n",
            "User-Agent: x/1 (y; z) \"q\"\r\n",
            "X-Colon: a:b:c\r\n",
        ]);
        let at = dice.below(fields.len() + 1);
        fields.insert(at, field.to_owned());
    }
    text.push_str(&format!(
        "{method} {target}{query} HTTP/1.1\r\n{}\r\n{body}",
        fields.concat()
    ));
}

fn strange(target: &str, dice: &mut Dice, text: &mut String) -> &'static str {
    match dice.below(8) {
        0..=2 => {
            let (oddity, fields) = dice.of(IN_FIELDS);
            let body = if fields.contains("chunked") {
                "3\r\nabc\r\n0\r\n\r\n"
            } else if fields.contains("Content-Length") {
                "abc"
            } else {
                ""
            };
            let (before, after) = dice.of(&[("Host: a\r\n", ""), ("", "Host: a\r\n")]);
            text.push_str(&format!(
                "POST {target} HTTP/1.1\r\n{before}{fields}{after}\r\n{body}"
            ));
            oddity
        }
        3 | 4 => {
            let (oddity, line) = dice.of(LINES);
            text.push_str(&format!("{}Host: a\r\n\r\n", line.replace('@', target)));
            oddity
        }
        5 => {
            let (oddity, fields) = dice.of(&[
                ("no host", ""),
                ("an empty host", "Host:\r\n"),
                ("a host with a space", "Host: a b\r\n"),
                ("a host with a slash", "Host: a/b\r\n"),
                ("a host with an at sign", "Host: a@b\r\n"),
            ]);
            text.push_str(&format!("GET {target} HTTP/1.1\r\n{fields}\r\n"));
            oddity
        }
        _ => {
            let (oddity, body) = dice.of(BODIES);
            text.push_str(&format!(
                "POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
            ));
            oddity
        }
    }
}
