// A device made of the unmodified Azure SDK that does what it is told: one JSON command per line on standard
// input, one JSON line per answer or event on standard output. The settings come in the first line.
'use strict';

const readline = require('readline');
const tls = require('tls');

const say = (line) => process.stdout.write(JSON.stringify(line) + '\n');
const reason = (err) => ({ error: err.name || 'Error', message: String(err.message || err) });

let client;
let twin;
let isModule = false;

// The SDK always dials HostName:8883. Sending that to the address under test does what an entry in the hosts
// file and a forwarded port would do; names, certificates and packets stay the SDK's own.
function redirect(address) {
  const at = address.lastIndexOf(':');
  const host = address.slice(0, at);
  const port = Number(address.slice(at + 1));
  const connect = tls.connect;
  tls.connect = (options, ...rest) => connect({ ...options, host, port }, ...rest);
}

// Tells of each C2D message that is acknowledged: while the SDK disconnects to renew a token it acknowledges
// messages that it then drops, so that the program does not see them.
function watch() {
  const mqtt = require('mqtt');
  const connect = mqtt.connect;
  mqtt.connect = (...args) => {
    const made = connect(...args);
    made.on('packetreceive', (p) => {
      if (p.cmd === 'publish' && p.topic.includes('/devicebound/')) say({ event: 'arrived', body: p.payload.toString() });
    });
    return made;
  };
}

async function start(settings) {
  redirect(settings.dial);
  if (settings.tokenSeconds) watch();
  const { Client, ModuleClient, SharedAccessKeyAuthenticationProvider } = require('azure-iot-device');
  const { NoRetry } = require('azure-iot-common');
  const { Mqtt } = require('azure-iot-device-mqtt');
  const { connectionString, tokenSeconds, token } = settings;
  isModule = /;ModuleId=/.test(connectionString);
  const Kind = isModule ? ModuleClient : Client;
  if (token) {
    client = Kind.fromSharedAccessSignature(token, Mqtt);
  } else if (tokenSeconds) {
    // Renewed at half of its time.
    const provider = SharedAccessKeyAuthenticationProvider.fromConnectionString(connectionString, tokenSeconds, tokenSeconds / 2);
    client = Kind.fromAuthenticationProvider(provider, Mqtt);
  } else {
    client = Kind.fromConnectionString(connectionString, Mqtt);
  }
  if (!settings.retry) client.setRetryPolicy(new NoRetry());
  const options = { ca: settings.ca };
  if (settings.cert) Object.assign(options, { cert: settings.cert, key: settings.key });
  await client.setOptions(options);
  client.on('disconnect', () => say({ event: 'disconnect' }));
  client.on('error', (err) => say({ event: 'error', ...reason(err) }));
}

const properties = (message) => {
  const out = {};
  for (const { key, value } of message.properties.propertyList) out[key] = value;
  return out;
};

const commands = {
  open: () => client.open(),
  async send({ body, id, contentType, contentEncoding, properties: bag }) {
    const { Message } = require('azure-iot-device');
    const message = new Message(body);
    if (id) message.messageId = id;
    if (contentType) message.contentType = contentType;
    if (contentEncoding) message.contentEncoding = contentEncoding;
    for (const [key, value] of Object.entries(bag || {})) message.properties.add(key, value);
    await client.sendEvent(message);
  },
  // Sends many messages, a few at a time; each that is acknowledged is an event, and so is one that the SDK gives up.
  async flood({ ids }) {
    const { Message } = require('azure-iot-device');
    const worker = async () => {
      for (let id; (id = ids.shift()) !== undefined; ) {
        const message = new Message(id);
        message.messageId = 'n-' + id;
        try {
          await client.sendEvent(message);
          say({ event: 'acked', id });
        } catch (err) {
          say({ event: 'failed', id, ...reason(err) });
        }
      }
    };
    for (let i = 0; i < 16; i++) worker();
  },
  async c2d() {
    client.on('message', (message) => {
      say({ event: 'c2d', id: message.messageId, body: message.data.toString(), properties: properties(message) });
      client.complete(message, (err) => err && say({ event: 'error', ...reason(err) }));
    });
  },
  async method({ name, status, body }) {
    const listen = isModule ? client.onMethod : client.onDeviceMethod;
    listen.call(client, name, (request, response) => {
      say({ event: 'method', name: request.methodName, payload: request.payload });
      response.send(status, body, (err) => err && say({ event: 'error', ...reason(err) }));
    });
  },
  async twin() {
    twin = await client.getTwin();
    return { desired: twin.properties.desired, reported: { ...twin.properties.reported, update: undefined } };
  },
  async desired() {
    // The SDK calls a new listener with what it knows already.
    twin.on('properties.desired', (delta) => say({ event: 'desired', delta }));
  },
  report: ({ patch }) => new Promise((resolve, reject) => {
    twin.properties.reported.update(patch, (err) => (err ? reject(err) : resolve()));
  }),
  close: () => client.close(),
};

async function run() {
  let started = false;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    try {
      if (!started) {
        started = true;
        await start(command);
        say({ answer: 'start' });
      } else {
        const result = await commands[command.op](command);
        say({ answer: command.op, result: command.op === 'twin' ? result : undefined });
      }
    } catch (err) {
      say({ answer: command.op || 'start', ...reason(err) });
    }
  }
  process.exit(0);
}

run();
