// A sensor as a Node.js programmer would write it. Prints one JSON line with what
// it saw; the Go test judges.
//
// usage: node sensor.js URL PROTOCOL_VERSION MESSAGES
'use strict'

const mqtt = require('mqtt')

const [url, version, count] = process.argv.slice(2)

async function main () {
  const client = await mqtt.connectAsync(url, {
    protocolVersion: Number(version),
    clientId: 'node-' + version,
    reconnectPeriod: 0,
    connectTimeout: 10000
  })
  const seen = { received: [], acked: 0, refused: null }
  client.on('message', (topic, payload, packet) => {
    seen.received.push({ topic, payload: payload.toString(), retain: packet.retain, qos: packet.qos })
  })
  const grants = await client.subscribeAsync('gateway/+/status', { qos: 1 })
  seen.granted = grants[0].qos
  const sends = []
  for (let i = 0; i < Number(count); i++) {
    sends.push(client.publishAsync('sensors/node/telemetry', JSON.stringify({ i }), {
      qos: 1,
      properties: version === '5' ? { userProperties: { unit: 'C' } } : undefined
    }))
  }
  await Promise.all(sends)
  seen.acked = sends.length
  if (version === '5') {
    try {
      await client.publishAsync('nowhere', 'x', { qos: 1 })
    } catch (err) {
      seen.refused = err.code
    }
  }
  for (let i = 0; i < 100 && seen.received.length === 0; i++) {
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  await client.endAsync()
  console.log(JSON.stringify(seen))
}

main().catch(err => {
  console.error(err)
  process.exit(1)
})
