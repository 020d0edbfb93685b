-- Where a topic's stream stands, and what was published after a position.
--
-- KEYS  1 position, 2 history
-- ARGV  1, 2 the epoch and sequence after which to read; 3 the most entries to read
--       4 how many of the newest to read where the stream is in another epoch
--       5 an epoch to begin where Redis has lost what it had: '' where it can have lost nothing
-- Returns nothing where the topic has no position, else the epoch, the sequence, whether the known
-- position is in that epoch, and entries of sequence, kind and text, oldest first.
--
-- Redis has lost writes (a failover, an old dump, a restart without data) where it stands behind
-- the reader. The same sequences would then be given to other publications: a new epoch begins.

local position = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
local epoch, sequence = position[1], tonumber(position[2] or 0)
local known, after = ARGV[1], tonumber(ARGV[2])

if ARGV[5] ~= '' and (not epoch or (epoch == known and sequence < after)) then
  epoch, sequence = ARGV[5], 0
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'sequence', 0)
end
if not epoch then
  return {}
end
local follows = epoch == known or redis.call('HGET', KEYS[1], 'was:' .. known) == epoch

local found
if follows then
  local first = '(' .. string.format('%.0f', after) .. '-0'
  found = redis.call('XRANGE', KEYS[2], first, '+', 'COUNT', ARGV[3])
else
  found = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[4])
end

-- COUNT 0 is answered with nil.
found = found or {}

local entries = {}
for index, entry in ipairs(found) do
  local fields = {}
  for at = 1, #entry[2], 2 do
    fields[entry[2][at]] = entry[2][at + 1]
  end
  local place = follows and index or #found + 1 - index
  entries[place] = {tonumber(string.match(entry[1], '^%d+')), fields['k'], fields['m']}
end
return {epoch, sequence, follows and 1 or 0, entries}
