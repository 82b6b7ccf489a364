use apimachinery::Value;

use super::*;

/// Evaluates with `self` bound to JSON; shows the result, or the error after a `!`.
#[track_caller]
fn check(json: &str, source: &str, want: &str) {
    let value: Value = serde_json::from_str(json).unwrap();
    let program = Program::compile(source).unwrap();
    let mut names = Activation::new();
    names.bind("self", Val::json(&value));
    let got = match program.evaluate(&names, &mut Budget::new(CALL_LIMIT)) {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("! {error}"),
    };
    assert_eq!(got, want, "{source}");
}

#[test]
fn the_language_works_as_specified() {
    check("{}", "1 + 2 * 3 == 7 && !(2 > 3)", "true");
    check("{}", "1 / 0 == 1 || true", "true");
    check("{}", "1 / 0 == 1 || false", "! division by zero");
    check("{}", "9223372036854775807 + 1", "! integer overflow");
    check(r#"{"a":{"b":[1,2]}}"#, "self.a.b[1] + size(self.a.b)", "4");
    check(r#"{"a":1}"#, "self.b", "! no such key: b");
    check(r#"{"a":null}"#, "has(self.a) || has(self.b)", "false");
    check(r#"{"l":[1,2,3]}"#, "self.l.filter(x, x > 1).map(x, x * 2)", "[4,6]");
    check(r#"{"l":[1,2,3]}"#, "self.l.exists(x, 1 / (x - 1) > 5 || x == 3)", "true");
    check(r#"{"l":[1,2,3]}"#, "self.l.exists_one(x, x == 1) && self.l.all(x, x < 4)", "true");
    check(r#"{"m":{"a":"a"}}"#, "self.m.all(k, k == self.m[k])", "true");
    check("{}", "{'a': 1, 'b': 2}.transformList(k, v, v > 1, k + string(v))", r#"["b2"]"#);
    check("{}", "[1, 2].all(i, v, v == i + 1)", "true");
    check("{}", "size('äö') == 2 && 'abc'.startsWith('ab') && 'abc' in ['abc']", "true");
    check("{}", "type(1) == int && type('a') == string", "true");
    check("{}", "true ? 1 : 2", "1");
    check("{}", "1 == 1.0 && 1u == 1", "true");
    check("{}", "'a' < 1", "! no such overload");
}

#[test]
fn optional_values_chain() {
    check(r#"{"a":{"b":1}}"#, "self.?a.?b.orValue(2)", "1");
    check(r#"{"a":{}}"#, "self.?a.?b.orValue(2)", "2");
    check(r#"{"l":[]}"#, "self.l[?0].hasValue()", "false");
    check("{}", "optional.none().value()", "! optional.none() dereference");
    check("{}", "optional.of(2).optMap(x, x + 1).value()", "3");
    check("{}", "[?optional.none(), 1, ?optional.of(2)]", "[1,2]");
}

#[test]
fn the_libraries_of_kubernetes_are_there() {
    check("{}", "quantity('5Mi').isLessThan(quantity('1Gi')) && !isQuantity('x')", "true");
    check("{}", "quantity('1').add(2).asInteger()", "3");
    check("{}", "ip('192.0.2.1').family() == 4 && isIP('::1') && !isIP('1.2.3')", "true");
    check("{}", "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.0.0.0/16')", "true");
    check("{}", "url('https://a:80/p?x=1').getPort()", r#""80""#);
    check(
        "{}",
        "url('::bad').getScheme()",
        r#"! URL parse error during conversion from string: parse "::bad": missing protocol scheme"#,
    );
    check("{}", "[3, 1, 2].max() + [1, 2].sum() + [1, 2, 1].lastIndexOf(1)", "8");
    check("{}", "[1, 2].isSorted() && sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1])", "true");
    check("{}", "'a1b22'.findAll('[0-9]+')", r#"["1","22"]"#);
    check("{}", "'%s is %d, %.2f'.format(['x', 3, 1.5])", r#""x is 3, 1.50""#);
    check("{}", "'a,b'.split(',').join('-') + 'ABC'.lowerAscii() + 'hello'.substring(1, 3)", r#""a-babcel""#);
    check("{}", "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('v1.0', true)", "true");
    check("{}", "!format.dns1123Label().validate('ok').hasValue()", "true");
    check("{}", "timestamp('2020-01-01T00:00:00Z') + duration('24h') < timestamp('2020-01-03T00:00:00Z')", "true");
    check("{}", "duration('90s').getMinutes() == 1 && timestamp('2020-02-03T00:00:00Z').getMonth() == 1", "true");
}

#[test]
fn a_budget_ends_what_costs_too_much() {
    let program = Program::compile("[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, a * b > 0))").unwrap();
    assert_eq!(program.evaluate(&Activation::new(), &mut Budget::new(100)).err(), Some(Error::Budget));
}

#[test]
fn syntax_errors_are_marked() {
    let error = Program::compile("self.a ==").unwrap_err().to_string();
    assert!(error.starts_with("ERROR: <input>:1:10: Syntax error: mismatched input '<EOF>' expecting"), "{error}");
    assert!(error.ends_with("\n | self.a ==\n | .........^"), "{error}");
}

#[test]
fn typed_values_follow_their_schema() {
    let value: Value = serde_json::from_str(r#"{"when":"2020-01-01T00:00:00Z","a.b":1,"in":2}"#).unwrap();
    let fields = [("when".into(), Type::Timestamp), ("a.b".into(), Type::Int), ("in".into(), Type::Int)];
    let ty = Type::Object(std::sync::Arc::new(ObjectType::new(fields)));
    let program =
        Program::compile("self.when < timestamp('2030-01-01T00:00:00Z') && self.a__dot__b + self.__in__ == 3").unwrap();
    let mut names = Activation::new();
    names.bind("self", Val::typed(&value, &ty));
    assert_eq!(program.evaluate(&names, &mut Budget::new(1000)).unwrap().as_bool(), Some(true));
}

/// Whatever somebody writes is an expression or is told why not, ends within its budget, always in the same way; and what
/// was found to be of a type is of that type.
#[test]
fn tampered_expressions() {
    let corpus = testing::fuzz::texts(
        10,
        &[
            "self.l.filter(x, x > 1).map(x, x * 2).exists(y, y == self.n)",
            "self.m.all(k, k == self.m[k]) || has(self.t) && size(self.t) < 3",
            "{'a': 1, 'b': 2}.transformList(k, v, v > 1, k + string(v))[0].startsWith('b')",
            "self.?a.?b.orValue(2) + [?optional.none(), 1][0] == 3 ? 'x' : self.t",
            "quantity('5Mi').add(2).isLessThan(quantity(self.t)) || isQuantity('1Gi')",
            "cidr('10.0.0.0/8').containsIP(ip('10.1.2.3')) && url('https://a:80/p?x=1').getPort() == '80'",
            "self.t.matches('^a(b|c)*$') && 'a b'.split(' ').size() == 2 && b'\\x00' != b\"a\" && 1u < 2u",
            "timestamp('2026-01-02T03:04:05Z') + duration('1h30m') > timestamp('2026-01-01T00:00:00Z')",
            "-9223372036854775808 / -1 > 0 || 1.5e300 * 1e300 > 0.0 || 7 % 0 == 1",
            "format.dns1123Label().validate(self.t).hasValue() || semver('1.2.3').isGreaterThan(semver('0.1.0'))",
        ],
    );
    let tokens: &[&[u8]] = &[
        b"self",
        b"(",
        b"))",
        b"[",
        b"]",
        b"{",
        b".map(",
        b".all(",
        b"?",
        b":",
        b"'",
        b"\"\"\"",
        b"r'",
        b"\\u",
        b"\\",
        b"&&",
        b"||",
        b"!",
        b"--",
        b"9223372036854775808",
        b"0x",
        b"1e999",
        b"null",
        b"type(",
        b"dyn(",
        b"in ",
        b"`a-b`",
        b"has(",
        b"\xff",
        b"//",
    ];
    let object: Value = serde_json::from_str(r#"{"l":[1,2,3],"m":{"a":"a"},"n":4,"t":"abc"}"#).unwrap();
    let declared = Declarations::new().with("self", DeclaredType::Dyn);
    testing::fuzz::fuzz(&corpus, tokens, |bytes, ()| {
        let source = String::from_utf8_lossy(bytes);
        let compiled = Program::compile(&source);
        let (program, of) = match Program::checked(&source, &declared) {
            Ok((program, of)) => (program, Some(of)),
            Err(CompileError(why)) => {
                assert!(why.starts_with("ERROR: <input>:"), "{source:?}: {why}");
                let Ok(program) = compiled else { return false };
                (program, None)
            }
        };
        let mut names = Activation::new();
        names.bind("self", Val::json(&object));
        let evaluate = || {
            let mut budget = Budget::new(100_000);
            let made = program.evaluate(&names, &mut budget);
            (made.as_ref().map_or_else(ToString::to_string, |value| format!("{value:?}")), made.ok())
        };
        let (told, made) = evaluate();
        assert_eq!(evaluate().0, told, "{source:?}");
        let Some(made) = made else { return false };
        let is_so = match of {
            Some(DeclaredType::Bool) => made.type_name() == "bool",
            Some(DeclaredType::Int) => made.type_name() == "int",
            Some(DeclaredType::String) => made.type_name() == "string",
            _ => true,
        };
        assert!(is_so, "{source:?} makes {}", made.type_name());
        true
    });
}
