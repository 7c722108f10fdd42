-- Marks with the ids of their items and when they expire: a page.
-- ARGV: cursor, pattern. Returns the next cursor, '0' after the last, and the marks.
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 500)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for _, key in ipairs(page[2]) do
    local item, ttl = redis.call('GET', key), redis.call('PTTL', key)
    if item and ttl >= 0 then found[#found + 1] = {key, item, string.format('%.0f', now + ttl)} end
end
return {page[1], found}
