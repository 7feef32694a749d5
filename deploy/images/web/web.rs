//! The demo's web server and the end-to-end tests' only image: one file, the
//! standard library alone, so that it builds with a bare rustc into an image made
//! from scratch.
//!
//! Its one hard promise is the drain: on SIGTERM it goes on accepting for a short
//! while, answers everything with `Connection: close`, then stops listening and
//! finishes what is in flight, so that a rolling update need not lose a request.
//! It is no general web server: bodies are read and dropped, chunked ones refused.
//!
//! See `USAGE` for what it does when asked.

use std::collections::VecDeque;
use std::env;
use std::ffi::c_int;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: web [OPTION…]           serve HTTP, after doing what the options say, in their order
  --port N                     listen there (default: $PORT, else 8080)
  --cat FILE                   print a file
  --write FILE=TEXT            write a file
  --env NAME                   print a variable of the environment
  --eat-mib N                  allocate and touch that much memory
  --print-every-ms N           print a numbered line again and again
  --exit-after-ms N            serve for that long, then exit (0: do not serve at all)
  --exit-code C                … with this code (default 0)
  --ignore-term                take no notice of SIGTERM
  --echo                       copy standard input to standard output, then exit
  --get URL                    GET http://…, print the body, exit 0 if the status is 2xx, then exit
  GET /            version, pod and count of requests, in one line
  GET /healthz     ok
  GET /work?ms=N   burn N ms of CPU
environment: VERSION; WORKERS (so many requests are handled at a time, the others wait);
  DELAY_MS (each / takes that long); DRAIN_MS (goes on accepting so long after SIGTERM)";

const CONNECTIONS_MAX: usize = 2048;
const CONNECTION_STACK_BYTES: usize = 128 * 1024;
const HEAD_BYTES_MAX: u64 = 16 * 1024;
const BODY_BYTES_MAX: u64 = 8 * 1024 * 1024;
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const GET_TIMEOUT: Duration = Duration::from_secs(10);
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(20);
const WORK_MS_MAX: u64 = 60_000;
const WORKERS_DEFAULT: u64 = 64;
const DRAIN_MS_DEFAULT: u64 = 400;

const SIGTERM: c_int = 15;
const SIGINT: c_int = 2;
const CLOCK_THREAD_CPUTIME_ID: c_int = 3;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn write(fd: c_int, bytes: *const u8, count: usize) -> isize;
    fn clock_gettime(clock: c_int, out: *mut Timespec) -> c_int;
}

/// Where the signal handler writes a byte for the main thread to read.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(_: c_int) {
    // SAFETY: write(2) may be called from a signal handler; the byte lives on the stack.
    unsafe { write(SIGNAL_PIPE.load(SeqCst), [1].as_ptr(), 1) };
}

fn main() {
    let options = Options::parse(env::args().skip(1)).unwrap_or_else(|problem| fail(&problem));
    for step in &options.steps {
        if let Err(problem) = step.run() {
            fail(&problem);
        }
    }
    if let Some(0) = options.exit_after_ms {
        exit(options.exit_code);
    }
    let signals = catch_signals(options.ignore_term);
    if let Some(ms) = options.exit_after_ms {
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(ms));
            exit(options.exit_code);
        });
    }
    if let Some(ms) = options.print_every_ms {
        thread::spawn(move || print_forever(ms));
    }
    let server = Arc::new(Server::from_env());
    let listener = TcpListener::bind(("0.0.0.0", options.port))
        .unwrap_or_else(|error| fail(&format!("cannot listen on port {}: {error}", options.port)));
    say(&format!("{} listens on port {}", server.version, options.port));
    let acceptor = {
        let server = Arc::clone(&server);
        thread::spawn(move || server.accept(&listener))
    };
    wait_for_signal(signals);
    say("draining");
    server.draining.store(true, SeqCst);
    thread::sleep(server.drain);
    // The acceptor takes what is queued before it comes to this connection of ours.
    server.stopped.store(true, SeqCst);
    let _ = TcpStream::connect(("127.0.0.1", options.port));
    let _ = acceptor.join();
    server.wait_until_idle();
    say(&format!("stopped after {} requests", server.requests.load(SeqCst)));
}

fn say(line: &str) {
    // A reader that has gone away is no reason to stop serving.
    let _ = writeln!(io::stdout(), "{line}");
}

fn fail(problem: &str) -> ! {
    let _ = writeln!(io::stderr(), "web: {problem}");
    exit(2)
}

fn number_from_env(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().unwrap_or_else(|_| fail(&format!("{name}={text} is not a number")))
        }
        _ => default,
    }
}

fn catch_signals(ignore: bool) -> UnixStream {
    let (reader, writer) = UnixStream::pair()
        .unwrap_or_else(|error| fail(&format!("cannot make a socket pair: {error}")));
    if !ignore {
        SIGNAL_PIPE.store(writer.into_raw_fd(), SeqCst);
    } else {
        // Kept open, or the reader would see its end at once.
        let _ = writer.into_raw_fd();
    }
    // SAFETY: the handler only calls write(2); with -1 for a descriptor that does nothing.
    unsafe {
        signal(SIGTERM, on_signal);
        signal(SIGINT, on_signal);
    }
    reader
}

fn wait_for_signal(mut signals: UnixStream) {
    let mut byte = [0];
    let _ = signals.read_exact(&mut byte);
}

fn print_forever(every_ms: u64) {
    for count in 1_u64.. {
        say(&format!("line {count}"));
        thread::sleep(Duration::from_millis(every_ms));
    }
}

/// What to do before serving.
enum Step {
    Cat(String),
    Write(String, String),
    Env(String),
    EatMib(usize),
    Echo,
    Get(String),
}

impl Step {
    fn run(&self) -> Result<(), String> {
        match self {
            Step::Cat(path) => {
                let mut file =
                    File::open(path).map_err(|error| format!("cannot open {path}: {error}"))?;
                io::copy(&mut file, &mut io::stdout())
                    .map_err(|error| format!("cannot print {path}: {error}"))?;
                let _ = io::stdout().flush();
            }
            Step::Write(path, text) => {
                fs::write(path, format!("{text}\n"))
                    .map_err(|error| format!("cannot write {path}: {error}"))?;
            }
            Step::Env(name) => say(&format!("{name}={}", env::var(name).unwrap_or_default())),
            Step::EatMib(mib) => {
                let mut memory = vec![0_u8; mib << 20];
                memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
                say(&format!("ate {mib} MiB"));
                // Kept until the end, which is what it is for.
                std::mem::forget(memory);
            }
            Step::Echo => {
                for line in io::stdin().lock().lines() {
                    say(&line.map_err(|error| format!("cannot read standard input: {error}"))?);
                }
                exit(0);
            }
            Step::Get(url) => exit(get(url)?),
        }
        Ok(())
    }
}

struct Options {
    port: u16,
    steps: Vec<Step>,
    print_every_ms: Option<u64>,
    exit_after_ms: Option<u64>,
    exit_code: i32,
    ignore_term: bool,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Options {
            port: u16::try_from(number_from_env("PORT", 8080))
                .map_err(|_| "PORT is past 65535".to_string())?,
            steps: Vec::new(),
            print_every_ms: None,
            exit_after_ms: None,
            exit_code: 0,
            ignore_term: false,
        };
        let mut args: VecDeque<String> = args.collect();
        while let Some(name) = args.pop_front() {
            let mut value =
                || args.pop_front().ok_or_else(|| format!("{name} needs a value\n{USAGE}"));
            match name.as_str() {
                "--port" => options.port = number(&name, &value()?)?,
                "--cat" => options.steps.push(Step::Cat(value()?)),
                "--write" => {
                    let text = value()?;
                    let (path, text) = text.split_once('=').ok_or("--write needs FILE=TEXT")?;
                    options.steps.push(Step::Write(path.to_string(), text.to_string()));
                }
                "--env" => options.steps.push(Step::Env(value()?)),
                "--eat-mib" => options.steps.push(Step::EatMib(number(&name, &value()?)?)),
                "--echo" => options.steps.push(Step::Echo),
                "--get" => options.steps.push(Step::Get(value()?)),
                "--print-every-ms" => options.print_every_ms = Some(number(&name, &value()?)?),
                "--exit-after-ms" => options.exit_after_ms = Some(number(&name, &value()?)?),
                "--exit-code" => options.exit_code = number(&name, &value()?)?,
                "--ignore-term" => options.ignore_term = true,
                "--help" | "-h" => {
                    say(USAGE);
                    exit(0);
                }
                _ => return Err(format!("unknown option {name}\n{USAGE}")),
            }
        }
        Ok(options)
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name} {text}: not a number that fits"))
}

struct Server {
    version: String,
    pod: String,
    delay: Duration,
    drain: Duration,
    requests: AtomicU64,
    connections: AtomicUsize,
    /// Requests read but not answered yet.
    in_flight: AtomicUsize,
    workers_free: Mutex<u64>,
    worker_freed: Condvar,
    draining: AtomicBool,
    stopped: AtomicBool,
}

impl Server {
    fn from_env() -> Self {
        let hostname = || {
            fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string()
        };
        Server {
            version: env::var("VERSION").unwrap_or_else(|_| "v0".to_string()),
            pod: env::var("HOSTNAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(hostname),
            delay: Duration::from_millis(number_from_env("DELAY_MS", 0)),
            drain: Duration::from_millis(number_from_env("DRAIN_MS", DRAIN_MS_DEFAULT)),
            requests: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            workers_free: Mutex::new(number_from_env("WORKERS", WORKERS_DEFAULT).max(1)),
            worker_freed: Condvar::new(),
            draining: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.stopped.load(SeqCst) {
                return;
            }
            // Out of descriptors, say: the next one may fare better.
            let Ok(stream) = stream else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            if self.connections.fetch_add(1, SeqCst) >= CONNECTIONS_MAX {
                self.connections.fetch_sub(1, SeqCst);
                let _ = (&stream).write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                continue;
            }
            let server = Arc::clone(self);
            let spawned =
                thread::Builder::new().stack_size(CONNECTION_STACK_BYTES).spawn(move || {
                    // The client went away, or sent what is no HTTP: nobody is left to tell.
                    let _ = server.serve_connection(&stream);
                    let _ = stream.shutdown(Shutdown::Write);
                    server.connections.fetch_sub(1, SeqCst);
                });
            if spawned.is_err() {
                self.connections.fetch_sub(1, SeqCst);
            }
        }
    }

    fn serve_connection(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let mut reader = BufReader::new(stream);
        loop {
            // From the first byte on a request counts as in flight.
            if reader.fill_buf()?.is_empty() {
                return Ok(());
            }
            self.in_flight.fetch_add(1, SeqCst);
            let outcome = self.serve_request(&mut reader);
            self.in_flight.fetch_sub(1, SeqCst);
            if !outcome? {
                return Ok(());
            }
        }
    }

    /// Whether the connection stays open for another request.
    fn serve_request(&self, reader: &mut BufReader<&TcpStream>) -> io::Result<bool> {
        let request = Request::read(reader)?;
        let (status, body) = self.answer(&request);
        let keep = request.keep_alive && !self.draining.load(SeqCst);
        let connection = if keep { "keep-alive" } else { "close" };
        let mut response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        if request.method != "HEAD" {
            response.push_str(&body);
        }
        // One write, so one segment: an answer half sent is what a client cannot retry.
        reader.get_mut().write_all(response.as_bytes())?;
        Ok(keep)
    }

    fn answer(&self, request: &Request) -> (&'static str, String) {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        match (request.method.as_str(), path) {
            ("BAD", _) => ("400 Bad Request", "bad request\n".to_string()),
            ("GET" | "HEAD" | "POST", "/") => {
                let count = self.requests.fetch_add(1, SeqCst) + 1;
                self.with_worker(|| thread::sleep(self.delay));
                ("200 OK", format!("web {} pod {} request {count}\n", self.version, self.pod))
            }
            // Not through the workers: a busy server is slow, not sick.
            ("GET" | "HEAD", "/healthz") => ("200 OK", "ok\n".to_string()),
            ("GET", "/work") => {
                let asked = query.split('&').find_map(|pair| pair.strip_prefix("ms="));
                match asked.unwrap_or("10").parse::<u64>() {
                    Ok(ms) if ms <= WORK_MS_MAX => {
                        self.requests.fetch_add(1, SeqCst);
                        self.with_worker(|| burn(Duration::from_millis(ms)));
                        ("200 OK", format!("worked {ms} ms\n"))
                    }
                    _ => ("400 Bad Request", format!("ms must be a number up to {WORK_MS_MAX}\n")),
                }
            }
            _ => ("404 Not Found", "not found\n".to_string()),
        }
    }

    fn with_worker(&self, work: impl FnOnce()) {
        let lock = || self.workers_free.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut free = lock();
        while *free == 0 {
            free = self.worker_freed.wait(free).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *free -= 1;
        drop(free);
        work();
        *lock() += 1;
        self.worker_freed.notify_one();
    }

    fn wait_until_idle(&self) {
        let deadline = Instant::now() + IN_FLIGHT_TIMEOUT;
        // Twice in a row: a request whose first byte has just come may not be counted yet.
        let mut idle_seen = 0;
        while idle_seen < 2 && Instant::now() < deadline {
            idle_seen = if self.in_flight.load(SeqCst) == 0 { idle_seen + 1 } else { 0 };
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Uses up that much of the CPU's time, however long it takes to get it.
fn burn(cpu: Duration) {
    let used = || {
        let mut now = Timespec { seconds: 0, nanoseconds: 0 };
        // SAFETY: `now` is a timespec, valid for the call.
        unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut now) };
        Duration::new(now.seconds as u64, now.nanoseconds as u32)
    };
    let end = used() + cpu;
    let mut number = 1_u64;
    while used() < end {
        for _ in 0..1000 {
            number = std::hint::black_box(number.wrapping_mul(6364136223846793005).wrapping_add(1));
        }
    }
}

struct Request {
    /// `BAD` for one that cannot be served.
    method: String,
    target: String,
    keep_alive: bool,
}

impl Request {
    fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Self> {
        let bad =
            || Request { method: "BAD".to_string(), target: String::new(), keep_alive: false };
        let mut head = reader.by_ref().take(HEAD_BYTES_MAX);
        let mut line = String::new();
        head.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let (Some(method), Some(target), Some(protocol)) =
            (words.next(), words.next(), words.next())
        else {
            return Ok(bad());
        };
        let mut request = Request {
            method: method.to_string(),
            target: target.to_string(),
            keep_alive: protocol != "HTTP/1.0",
        };
        let mut body_bytes = 0;
        loop {
            let mut line = String::new();
            if head.read_line(&mut line)? == 0 {
                return Ok(bad());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            match name.to_ascii_lowercase().as_str() {
                "connection" => request.keep_alive = !value.to_ascii_lowercase().contains("close"),
                "content-length" => match value.trim().parse() {
                    Ok(bytes) if bytes <= BODY_BYTES_MAX => body_bytes = bytes,
                    _ => return Ok(bad()),
                },
                "transfer-encoding" => return Ok(bad()),
                _ => {}
            }
        }
        io::copy(&mut reader.by_ref().take(body_bytes), &mut io::sink())?;
        Ok(request)
    }
}

/// Prints the body; the exit code is 0 for a 2xx status, else 1.
fn get(url: &str) -> Result<i32, String> {
    let rest =
        url.strip_prefix("http://").ok_or_else(|| format!("{url} does not start with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_string() } else { format!("{host}:80") };
    let trouble = |error: io::Error| format!("cannot get {url}: {error}");
    let mut addresses = address.to_socket_addrs().map_err(trouble)?;
    let address = addresses.next().ok_or_else(|| format!("cannot get {url}: no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, GET_TIMEOUT).map_err(trouble)?;
    stream.set_read_timeout(Some(GET_TIMEOUT)).map_err(trouble)?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        .map_err(trouble)?;
    let mut response = Vec::new();
    stream.take(BODY_BYTES_MAX).read_to_end(&mut response).map_err(trouble)?;
    let text = String::from_utf8_lossy(&response);
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| format!("cannot get {url}: no HTTP answer"))?;
    let _ = io::stdout().write_all(body.as_bytes());
    let _ = io::stdout().flush();
    let status = head.split_whitespace().nth(1).unwrap_or("");
    Ok(if status.starts_with('2') { 0 } else { 1 })
}
