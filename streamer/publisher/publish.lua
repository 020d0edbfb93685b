-- Publishes once, in order, and at the topic's next position: all of it or nothing.
--
-- KEYS  1 the publisher's records, 2 position, 3 history
-- ARGV  1 number of the publication, counted by the publisher
--       2 slot of its record: reused only when the publication that had it is settled
--       3 number of the publication that must have gone before, 0 for none
--       4 seconds to keep the records      5 channel      6 text without its last brace
--       7 kind      8 the name, without its time, of the epoch to begin where there is none
--       9, 10 the epoch and sequence of the publisher's last receipt
--       11 entries to keep in the history      12 milliseconds to keep them
--       13 who publishes, for people; may be left out
-- Returns the epoch, the sequence and how many subscribers received it; and 1 after these if an
-- earlier call has published it.

local number, prior, channel, text = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[5], ARGV[6]

local records = redis.call('HMGET', KEYS[1], 'last', ARGV[2])
local last = tonumber(records[1] or 0)
if records[2] then
  local recorded, epoch, sequence, receivers =
    string.match(records[2], '^(%d+) (%S+) (%d+) (%d+)$')
  if recorded == ARGV[1] then
    return {epoch, tonumber(sequence), tonumber(receivers), 1}
  end
end
-- A pipeline continues after a command that failed, and commands of a connection that the publisher
-- gave up may still arrive. Neither may overtake or come late.
if last < prior or number < last then
  return redis.error_reply('OUTOFORDER publication ' .. number .. ' after ' .. last)
end

-- The time at which a script began an epoch, in milliseconds; 0 where its name does not have it.
local function began_ms(epoch)
  local digits = string.match(epoch or '', '@(%d+)$')
  return digits and #digits <= 15 and tonumber(digits) or 0
end

local history, age_ms = KEYS[3], tonumber(ARGV[12])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local position = redis.call('HMGET', KEYS[2], 'epoch', 'sequence')
local epoch, sequence = position[1], tonumber(position[2] or 0)
if not (sequence and sequence >= 0 and sequence < 9007199254740991) then
  epoch, sequence = nil, 0  -- nothing that a publisher has written: it cannot be continued
end
local known_ms = began_ms(ARGV[9])
-- Behind what it had acknowledged, or in an older epoch, Redis has lost writes (a failover, an old
-- dump): the same sequences would be given to other publications.
local begins = not epoch or (epoch == ARGV[9] and sequence < tonumber(ARGV[10]))
  or (began_ms(epoch) > 0 and began_ms(epoch) < known_ms)
local digits, whole, added
repeat
  if begins then
    -- Later than the epoch before, whatever the clock of this Redis shows.
    epoch = string.format('%s@%.0f', ARGV[8],
      math.max(now_ms, known_ms + 1, began_ms(epoch) + 1))
    sequence = 0
    redis.call('DEL', history)
  end
  digits = string.format('%.0f', sequence + 1)
  whole = text .. ',"epoch":"' .. epoch .. '","sequence":' .. digits .. '}'
  -- The first write, since Redis could refuse it.
  added = redis.pcall('XADD', history, 'MAXLEN', '~', ARGV[11], digits .. '-0',
    'm', whole, 't', now_ms, 'k', ARGV[7])
  -- The history goes beyond the position (a key that was restored alone, an entry of another
  -- program): as with lost writes, what comes next cannot be known.
  begins = not begins and type(added) == 'table' and added.err
    and string.find(added.err, 'equal or smaller', 1, true)
until not begins
if type(added) == 'table' and added.err then
  return added
end
sequence = sequence + 1
-- Two for each that is added, so that old entries are removed faster than new ones are added.
for _, entry in ipairs(redis.call('XRANGE', history, '-', '+', 'COUNT', 2)) do
  -- By name: an entry that another program has left here must not stop the topic.
  local published_ms = 0
  for at = 1, #entry[2], 2 do
    if entry[2][at] == 't' then
      published_ms = tonumber(entry[2][at + 1]) or 0
    end
  end
  if now_ms - published_ms > age_ms then
    redis.call('XDEL', history, entry[1])
  end
end
redis.call('PEXPIRE', history, age_ms)
redis.call('HSET', KEYS[2], 'epoch', epoch, 'sequence', digits, 'publisher', ARGV[13] or '',
  'last:' .. ARGV[7], epoch .. ' ' .. digits)

-- A hash tag: the channel is one of a Cluster, whose messages stay within the channel's shard.
local publish = string.sub(channel, 1, 1) == '{' and 'SPUBLISH' or 'PUBLISH'
local receivers = redis.call(publish, channel, whole)
redis.call('HSET', KEYS[1], 'last', ARGV[1], ARGV[2],
  string.format('%s %s %.0f %d', ARGV[1], epoch, sequence, receivers))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {epoch, sequence, receivers}
